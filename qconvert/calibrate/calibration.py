"""Everything measured of one model on one list of images, whole or in parts that add up.

It is collected batch by batch from the outputs of a tapped model. The result depends on the
activations alone: not on the size of the batches, their order, or where the work was interrupted.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import ArrayLike, DTypeLike, NDArray

from qconvert.calibrate.summary import (
    INFINITY_KEY,
    NAN_KEY,
    SIGN_KEY,
    FloatCounts,
    Summary,
    count_keys,
    float_keys,
    merge_summaries,
)
from qconvert.core import atomic, npz
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import Tensors, tap_name

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
    order = np.argsort(indices, kind="stable")
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

    def __init__(self, start: Calibration) -> None:
        self._start = start
        self._builders = [_SummaryBuilder(tensor) for tensor in start.origin.tensors]
        self._added: list[int] = []

    @property
    def image_count(self) -> int:
        """The number of images so far, those of `start` included."""
        return self._start.image_indices.size + len(self._added)

    def add(self, indices: Sequence[int], outputs: Tensors) -> None:
        """Add the outputs for the images with these indices in the list."""
        for tensor in self._start.origin.tensors:
            names = [tap_name(kind, tensor) for kind in ("low", "high", "mean", "sample")]
            if any(len(outputs[name]) != len(indices) for name in names if name in outputs):
                raise QConvertError(
                    f"`{tensor}` mixes the images of a batch: {len(indices)} went in, "
                    f"{len(outputs[names[0]])} came out",
                    hint="run one image at a time",
                )
        for builder in self._builders:
            builder.add(outputs)
        self._added.extend(indices)

    def calibration(self) -> Calibration:
        """Return everything collected so far."""
        if not self._added:
            return self._start
        indices = np.array(self._added, dtype=np.int64)
        order = np.argsort(indices, kind="stable")
        summaries = {builder.tensor: builder.summary(order) for builder in self._builders}
        added = Calibration(self._start.origin, indices[order], summaries)
        return merge_calibrations(self._start, added)


class _SummaryBuilder:
    """Builds the summary of one tensor, its images in the order they came."""

    def __init__(self, tensor: str) -> None:
        self.tensor = tensor
        self._summary: Summary | None = None
        # Lows, highs and means of batches; then the keys of their samples, and their sizes.
        self._pending: list[tuple[NDArray[np.float32], ...]] = []
        self._keys: list[NDArray[np.uint16]] = []
        self._size = 0

    def add(self, outputs: Tensors) -> None:
        kinds = ("low", "high", "mean", "sample", "size")
        low, high, mean, sample, size = (tap_name(kind, self.tensor) for kind in kinds)
        # Adding zero turns -0.0 into 0.0; of the two, a minimum returns whichever came first.
        lows, highs = (outputs[name] + np.float32(0) for name in (low, high))
        self._pending.append((lows, highs, outputs[mean]))
        if sample in outputs:
            self._keys.append(_sampled_keys(outputs[sample], lows, highs))
            self._size += int(outputs[size].item()) * len(lows)
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
            lows[finite].min(axis=0, initial=np.float32(np.inf)),
            highs[finite].max(axis=0, initial=-np.float32(np.inf)),
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


# --- the file: reading it checks every number, and allocates no size that it claims unchecked ---

FILE_FORMAT, FILE_VERSION = "qconvert-calibration", 1
# Far above what can be counted, and far below where sums overflow.
MAX_COUNT = 1 << 48

Array = NDArray[Any]

# The arrays of all tensors end to end; `key_counts` and `channel_counts` hold the lengths. `lows`
# and `highs` have a row for each tensor, a column for each image.
FIELDS: Mapping[str, tuple[DTypeLike, Callable[[Summary], ArrayLike]]] = {
    "lows": (np.float32, lambda summary: summary.lows),
    "highs": (np.float32, lambda summary: summary.highs),
    "sizes": (np.int64, lambda summary: summary.size),
    "key_counts": (np.int64, lambda summary: summary.counts.keys.size),
    "keys": (np.uint16, lambda summary: summary.counts.keys),
    "numbers": (np.int64, lambda summary: summary.counts.occurrences),
    "channel_counts": (np.int64, lambda summary: summary.channel_lows.size),
    "channel_lows": (np.float32, lambda summary: summary.channel_lows),
    "channel_highs": (np.float32, lambda summary: summary.channel_highs),
}
DTYPES: Mapping[str, DTypeLike] = {
    "about": np.uint8,  # JSON: format, version, origin
    "done": np.int64,
    **{name: dtype for name, (dtype, _) in FIELDS.items()},
}


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration, whole or in part, as an `.npz`."""
    atomic.write_bytes(path, pack_calibration(calibration))


def pack_calibration(calibration: Calibration) -> bytes:
    """Return the bytes of the file; the same calibration gives the same ones."""
    origin, indices = calibration.origin, calibration.image_indices
    summaries = [calibration.summaries[tensor] for tensor in origin.tensors] if indices.size else []
    about = json.dumps(
        {"format": FILE_FORMAT, "version": FILE_VERSION, "origin": asdict(origin)}, sort_keys=True
    )
    arrays: dict[str, Array] = {"about": np.frombuffer(about.encode(), np.uint8), "done": indices}
    for name, (dtype, get) in FIELDS.items():
        parts = [np.atleast_1d(get(summary)) for summary in summaries]
        arrays[name] = np.concatenate([np.zeros(0, dtype), *parts])
    for name in ("lows", "highs"):
        arrays[name] = arrays[name].reshape(len(summaries), indices.size)
    return npz.pack({name: array.astype(DTYPES[name]) for name, array in arrays.items()})


def load_calibration(path: Path) -> Calibration:
    """Read a file that `save_calibration` wrote; reject any other with the reason."""
    if not path.is_file():
        raise UsageError(
            f"`{path}` does not exist", hint="`qconvert calibrate MODEL --images PATH` writes one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpack(archive)
    except npz.CORRUPT_ERRORS as error:
        raise QConvertError(
            f"`{path}` is not a calibration file, or is damaged: {first_line(error)}",
            hint="calibrate again, or copy the file again; the copy may be incomplete",
        ) from None


def _unpack(archive: zipfile.ZipFile) -> Calibration:
    """Return what `pack_calibration` wrote; ValueError says what is wrong with anything else."""
    members = {member.filename: member for member in archive.infolist()}
    npz.require_within_limit(list(members.values()))

    def read(name: str) -> Array:
        array = npz.read_array(archive, members[f"{name}.npy"])
        if array.dtype != DTYPES[name]:
            raise ValueError(f"`{name}` has another type")
        return array

    if "about.npy" not in members:
        raise ValueError("its format is not stated")
    origin = _parse_origin(read("about").tobytes())
    if not members.keys() >= {f"{name}.npy" for name in DTYPES}:  # older files have others too
        raise ValueError("it does not hold the expected arrays")
    arrays = {name: read(name) for name in DTYPES}
    _validate(origin, arrays)
    indices = arrays["done"].astype(np.int64)
    if not indices.size:
        return Calibration(origin)
    rows: dict[str, Any] = dict(arrays)
    for names, lengths in (
        (("keys", "numbers"), "key_counts"),
        (("channel_lows", "channel_highs"), "channel_counts"),
    ):
        ends = np.cumsum(arrays[lengths])[:-1]
        rows |= {name: np.split(arrays[name], ends) for name in names}
    summaries = {}
    for number, tensor in enumerate(origin.tensors):
        part = {name: rows[name][number] for name in FIELDS}
        summaries[tensor] = Summary(
            part["lows"],
            part["highs"],
            FloatCounts(part["keys"], part["numbers"]),
            int(part["sizes"]),
            part["channel_lows"],
            part["channel_highs"],
        )
    return Calibration(origin, indices, summaries)


def _parse_origin(about: bytes) -> Origin:
    try:
        header = json.loads(about)
        is_ours, version = header["format"] == FILE_FORMAT, header["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        is_ours, version = False, None
    if not is_ours:
        raise ValueError("its format is not stated")
    if version != FILE_VERSION:
        raise QConvertError(
            f"the calibration file has format {version}, this qconvert reads {FILE_VERSION}",
            hint="calibrate again, or use the version of qconvert that wrote the file",
        )
    try:
        return pydantic.TypeAdapter(Origin).validate_json(json.dumps(header.get("origin")))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"its origin is not complete: {field}: {first['msg']}") from None


def _validate(origin: Origin, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError for the first array with impossible numbers; their types are right."""

    def require(holds: bool | np.bool_, name: str) -> None:
        if not holds:
            raise ValueError(f"the numbers in `{name}` are impossible")

    done, lows, highs = arrays["done"], arrays["lows"], arrays["highs"]
    require(done.ndim == 1 and _is_increasing(done), "done")
    require(_in_range(done, 0, len(origin.images) - 1), "done")
    tensors = len(origin.tensors) if done.size else 0
    for name in ("lows", "highs"):
        require(arrays[name].shape == (tensors, done.size), name)
        require(not np.isinf(arrays[name]).any(), name)
    require(((lows <= highs) | np.isnan(lows)).all(), "lows")
    require((np.isnan(highs) == np.isnan(lows)).all(), "highs")
    for name in ("sizes", "key_counts", "channel_counts"):
        require(arrays[name].shape == (tensors,), name)
        require(_in_range(arrays[name], 0, MAX_COUNT), name)

    counts, keys, numbers = arrays["key_counts"], arrays["keys"], arrays["numbers"]
    require(_lengths_match(counts, keys) and numbers.shape == keys.shape, "keys")
    require(_in_range(numbers, 1, MAX_COUNT), "numbers")
    # Keys rise within a tensor, so they rise throughout with the number of the tensor in front.
    require(_is_increasing((np.repeat(np.arange(tensors), counts) << 16) + keys), "keys")

    counts, lows, highs = (arrays[f"channel_{name}"] for name in ("counts", "lows", "highs"))
    require(_lengths_match(counts, lows) and (counts > 0).all(), "channel_counts")
    require(highs.shape == lows.shape, "channel_highs")
    # A channel of a tensor that was never finite runs from infinity down to minus infinity.
    empty = np.isposinf(lows) & np.isneginf(highs)
    require(((lows <= highs) & np.isfinite(highs - lows) | empty).all(), "channel_lows")


def _lengths_match(lengths: Array, joined: Array) -> bool:
    # Summed as Python integers, which do not overflow.
    return joined.ndim == 1 and sum(lengths.tolist()) == joined.size


def _is_increasing(array: Array) -> bool:
    return bool((array[1:] > array[:-1]).all())


def _in_range(array: Array, low: int, high: int) -> bool:
    return bool(((array >= low) & (array <= high)).all())
