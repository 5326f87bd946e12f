"""Everything measured of one model on one list of images, whole or in parts that add up.

It is collected batch by batch from the outputs of a tapped model. The result depends on the
activations alone: not on the size of the batches, their order, or where the work was interrupted.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import pydantic
from numpy.typing import NDArray

from qconvert.calibrate.summary import (
    INFINITY_KEY,
    NAN_KEY,
    SIGN_KEY,
    ChannelSummary,
    Summary,
    count_keys,
    float_keys,
    merge_summaries,
    sum_exactly,
)
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, TensorTap

# Batches wait until there are enough of them to be worth a table of 65,536 keys.
MAX_PENDING_VALUES = 1 << 17
MAX_PENDING_BATCHES = 64


@dataclass(frozen=True)
class CalibrationImage:
    """The name of an image, and the sha256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What decides the numbers; calibrations of different origins never mix.

    `model` is the hash of the model that was run, `runtime` names the provider and the image
    decoder with their versions, `exact` says that every value was counted.
    """

    model: str
    tensors: tuple[str, ...]
    images: tuple[CalibrationImage, ...]
    preprocessing: dict[str, pydantic.JsonValue]
    runtime: str
    exact: bool

    @property
    def fingerprint(self) -> str:
        """The hash of all this."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Calibration:
    """A summary for each tensor, over the images of the list at `image_indices`.

    The indices rise. Some may be missing: unreadable images, or images still to come.
    """

    origin: Origin
    image_indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    summaries: dict[str, Summary] = field(default_factory=dict)

    def missing_images(self, part: range | None = None) -> list[range]:
        """Return the indices still missing in the list, or in a part of it, as runs."""
        part = range(len(self.origin.images)) if part is None else part
        missing = np.setdiff1d(np.arange(part.start, part.stop), self.image_indices)
        runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
        return [range(int(run[0]), int(run[-1]) + 1) for run in runs if run.size]


def merge_calibrations(a: Calibration, b: Calibration) -> Calibration:
    """Add two parts; the result is the same in any order, down to the last bit."""
    names = [item.name for item in fields(Origin)]
    different = [name for name in names if getattr(a.origin, name) != getattr(b.origin, name)]
    if different:
        raise QConvertError(
            f"the two calibrations do not belong together: they differ in {', '.join(different)}",
            hint="parts add up when model, image list and settings are the same in all of them",
        )
    shared = np.intersect1d(a.image_indices, b.image_indices)
    if shared.size:
        name = a.origin.images[int(shared[0])].name
        raise QConvertError(
            f"the two parts share {shared.size} images, among them `{name}`",
            hint="each image counts once: give every `--shard` part only once",
        )
    if not a.image_indices.size or not b.image_indices.size:
        return b if b.image_indices.size else a
    indices = np.concatenate([a.image_indices, b.image_indices])
    order = np.argsort(indices)
    summaries = {
        tensor: merge_summaries(summary, b.summaries[tensor], order)
        for tensor, summary in a.summaries.items()
    }
    return Calibration(a.origin, indices[order], summaries)


def require_finite(calibration: Calibration, masked: frozenset[str] = frozenset()) -> None:
    """Refuse NaN in any tensor, and infinity in those not `masked`; name the tensors and images."""
    sentences = []
    for tensor, summary in calibration.summaries.items():
        nans = summary.counts.count_of(NAN_KEY)
        infinities = summary.counts.count_of(INFINITY_KEY, SIGN_KEY | INFINITY_KEY)
        if tensor in masked and not nans:
            continue
        indices = calibration.image_indices[~summary.finite]
        if indices.size or nans or infinities:
            first = calibration.origin.images[int(indices[0])].name if indices.size else "?"
            sentences.append(
                f"`{tensor}`: {indices.size} of {calibration.image_indices.size} images "
                f"(first: `{first}`); in the sample {nans} NaN, {infinities} infinite"
            )
    if sentences:
        first = sentences[0].partition(":")[0]
        others = f" and {len(sentences) - 1} more tensors" if len(sentences) > 1 else ""
        raise QConvertError(
            f"{first}{others} holds values that are not finite; no range can be measured",
            details=sentences[:5],
            hint="check the preprocessing and the weights; the first tensor listed is the source",
        )


def sample_phases(indices: Sequence[int]) -> NDArray[np.int64]:
    """Return where the sample of each image starts; multiples of the golden ratio spread well."""
    return (np.array(indices, dtype=np.int64) * 2654435761 % (1 << 32))[:, np.newaxis]


class Collector:
    """Grows batch by batch from `start`; memory grows by two numbers per image and tensor."""

    def __init__(self, taps: Sequence[TensorTap], start: Calibration) -> None:
        self._start = start
        self._builders = [_SummaryBuilder(tap) for tap in taps]
        self._added: list[int] = []
        self._done = set(start.image_indices.tolist())

    @property
    def image_count(self) -> int:
        """The number of images so far, those of `start` included."""
        return len(self._done)

    def add(self, indices: Sequence[int], outputs: Tensors) -> None:
        """Add the outputs for the images with these indices in the list."""
        for tap in (builder.tap for builder in self._builders):
            names = [name for name in (tap.low, tap.high, tap.mean, tap.sample) if name]
            if any(len(outputs[name]) != len(indices) for name in names):
                raise QConvertError(
                    f"`{tap.tensor}` mixes the images of a batch: {len(indices)} went in, "
                    f"{len(outputs[tap.low])} came out",
                    hint="run one image at a time",
                )
        for index in indices:
            if index in self._done or index not in range(len(self._start.origin.images)):
                raise ValueError(f"image {index} was counted already, or is not in the list")
            self._done.add(index)
        for builder in self._builders:
            builder.add(outputs)
        self._added.extend(indices)

    def calibration(self) -> Calibration:
        """Return everything collected so far."""
        if not self._added:
            return self._start
        indices = np.array(self._added, dtype=np.int64)
        order = np.argsort(indices)
        summaries = {builder.tap.tensor: builder.summary(order) for builder in self._builders}
        added = Calibration(self._start.origin, indices[order], summaries)
        return merge_calibrations(self._start, added)


class _SummaryBuilder:
    """Builds the summary of one tensor, its images in the order they came."""

    def __init__(self, tap: TensorTap) -> None:
        self.tap = tap
        self._summary: Summary | None = None
        # Lows, highs and means of batches; then the keys of their samples, and their sizes.
        self._pending: list[tuple[NDArray[np.float32], ...]] = []
        self._keys: list[NDArray[np.uint16]] = []
        self._size = 0

    def add(self, outputs: Tensors) -> None:
        tap = self.tap
        # Adding zero turns -0.0 into 0.0; of the two, a minimum returns whichever came first.
        lows, highs = (outputs[name] + np.float32(0) for name in (tap.low, tap.high))
        self._pending.append((lows, highs, outputs[tap.mean]))
        if tap.sample:
            self._keys.append(_sampled_keys(outputs[tap.sample], lows, highs))
            self._size += int(outputs[tap.size].item()) * len(lows)
        full = sum(keys.size for keys in self._keys) >= MAX_PENDING_VALUES
        if full or len(self._pending) >= MAX_PENDING_BATCHES:
            self._merge_pending()

    def summary(self, order: NDArray[np.intp]) -> Summary:
        self._merge_pending()
        assert self._summary is not None, "there was no batch"
        lows, highs = self._summary.lows[order], self._summary.highs[order]
        return replace(self._summary, lows=lows, highs=highs)

    def _merge_pending(self) -> None:
        if not self._pending:
            return
        lows, highs, means = map(np.concatenate, zip(*self._pending, strict=True))
        # A minimum may pass over NaN, a mean never does.
        finite = np.isfinite(np.concatenate([lows, highs, means], axis=1)).all(axis=1)
        summary = Summary(
            np.where(finite, lows.min(axis=1), np.float32(np.nan)),
            np.where(finite, highs.max(axis=1), np.float32(np.nan)),
            count_keys(self._keys),
            self._size,
            ChannelSummary(
                lows[finite].min(axis=0, initial=np.float32(np.inf)),
                highs[finite].max(axis=0, initial=-np.float32(np.inf)),
                sum_exactly(means[finite]),
            ),
        )
        if self._summary is not None:
            order = np.arange(self._summary.lows.size + summary.lows.size)
            summary = merge_summaries(self._summary, summary, order)
        self._summary, self._pending, self._keys, self._size = summary, [], [], 0


def _sampled_keys(
    sample: NDArray[np.float32], lows: NDArray[np.float32], highs: NDArray[np.float32]
) -> NDArray[np.uint16]:
    """Return the keys of sampled values without the two extremes of each image.

    The extremes are known exactly. Left in, one that happens to be drawn would stand for as many
    values as any other, and the rare large values decide where a range ends.
    """
    keep = np.ones(sample.shape, dtype=np.bool_)
    rows = np.arange(len(keep))
    for extremes in (lows.min(axis=1), highs.max(axis=1)) if keep.size else ():
        hit = sample == np.where(np.isfinite(extremes), extremes, np.nan)[:, np.newaxis]
        first = hit.argmax(axis=1)
        keep[rows, first] &= ~hit[rows, first]
    return float_keys(sample)[keep]
