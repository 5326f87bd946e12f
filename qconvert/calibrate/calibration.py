"""Everything measured of one model on one list of images, whole or in parts that add up."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import pydantic
from numpy.typing import NDArray

from qconvert.calibrate.summary import INFINITY_KEY, NAN_KEY, SIGN_KEY, Summary, merge_summaries
from qconvert.core.errors import QConvertError


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
    """Reject a calibration in which a tensor held NaN or infinity, and name tensors and images.

    Tensors that are `masked` may hold infinity, and no NaN.
    """
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
