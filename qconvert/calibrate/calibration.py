"""Everything measured of one model on one list of images, whole or in part; parts add up."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

import numpy as np
import pydantic
from numpy.typing import NDArray

from qconvert.calibrate import summary
from qconvert.calibrate.summary import Summary
from qconvert.core.errors import QConvertError


@dataclass(frozen=True)
class CalibrationImage:
    """One image of the list: how it is called, and the sha256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What decides the numbers; results of different origins never mix.

    `model` is the hash of the model that was run, `runtime` names the provider and what read the
    images, with their versions, `exact` says that every value was counted.
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
    """A summary for each tensor, over the images whose places in the list are in `done`.

    `done` rises; it need not be without gaps, as images may be left out or still to come.
    """

    origin: Origin
    image_indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    summaries: dict[str, Summary] = field(default_factory=dict)

    def missing_images(self, wanted: range | None = None) -> list[range]:
        """Return what is not done yet of the list, or of one part of it, as runs of numbers."""
        wanted = range(len(self.origin.images)) if wanted is None else wanted
        left = np.setdiff1d(np.arange(wanted.start, wanted.stop), self.image_indices)
        runs = np.split(left, np.flatnonzero(np.diff(left) > 1) + 1)
        return [range(int(run[0]), int(run[-1]) + 1) for run in runs if run.size]


def merge_calibrations(a: Calibration, b: Calibration) -> Calibration:
    """Add two parts; the same result in any order, down to the last bit."""
    _require_same_origin(a.origin, b.origin)
    both = np.intersect1d(a.image_indices, b.image_indices)
    if both.size:
        name = a.origin.images[int(both[0])].name
        raise QConvertError(
            f"the two parts share {both.size} images, among them `{name}`",
            hint="each image counts once: give every `--shard` part only once",
        )
    if not a.image_indices.size or not b.image_indices.size:
        return b if b.image_indices.size else a
    done = np.concatenate([a.image_indices, b.image_indices])
    order = np.argsort(done)
    merged = {
        tensor: summary.merge_summaries(mine, b.summaries[tensor], order)
        for tensor, mine in a.summaries.items()
    }
    return Calibration(a.origin, done[order], merged)


def nonfinite_tensors(calibration: Calibration, masked: frozenset[str] = frozenset()) -> list[str]:
    """Return a sentence for each tensor that held NaN or infinity, and in which images.

    Those that are `masked` may hold infinity, and no NaN.
    """
    found = []
    for tensor, seen in calibration.summaries.items():
        if tensor in masked and not seen.counts.nans:
            continue
        broken = calibration.image_indices[~seen.finite]
        if broken.size or seen.counts.nans or seen.counts.infinities:
            first = calibration.origin.images[int(broken[0])].name if broken.size else "?"
            found.append(
                f"`{tensor}`: {broken.size} of {calibration.image_indices.size} images "
                f"(first: `{first}`); "
                f"in the sample {seen.counts.nans} NaN, {seen.counts.infinities} infinite"
            )
    return found


def require_finite(calibration: Calibration, masked: frozenset[str] = frozenset()) -> None:
    """Refuse a calibration in which a tensor held NaN or infinity, and name the tensor."""
    found = nonfinite_tensors(calibration, masked)
    if not found:
        return
    first = found[0].partition(":")[0]
    others = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
    raise QConvertError(
        f"{first}{others} holds values that are not finite; no range can be measured",
        details=found[:5],
        hint="check the preprocessing and the weights: the first tensor listed is where it starts",
    )


def _require_same_origin(a: Origin, b: Origin) -> None:
    names = ("model", "tensors", "images", "preprocessing", "runtime", "exact")
    apart = [name for name in names if getattr(a, name) != getattr(b, name)]
    if apart:
        raise QConvertError(
            f"the two calibrations do not belong together: they differ in {', '.join(apart)}",
            hint="parts add up when model, image list and settings are the same in all of them",
        )
