"""How the outputs of one network are read, as data: made once, then the same for every engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors, output_array
from qconvert.tasks.boxes import Candidates, Floats
from qconvert.tasks.predictions import MAX_DETECTIONS

Task = Literal["detect", "segment"]
Arrays = Sequence[NDArray[Any]]
# A function of a layout takes the arrays of a batch, the input's (width, height), the threshold and
# the options of its head. It returns the candidates, or the class map, of each picture.
BoxLayout = Callable[..., list[Candidates]]
MaskLayout = Callable[..., NDArray[np.int32]]
Option = bool | int | float | str | tuple[int, ...]

# COCO's metrics need the low scores too.
MIN_SCORE = 0.001
# A map of less than one cell per this many pixels of the input, along a side, is no segmentation.
COARSEST = 8
OPEN_UNIT = "taken as pixels, as the first batch has no boxes"


@dataclass(frozen=True)
class Head:
    """Which outputs are read, by which function of `LAYOUTS`, with which options.

    `swapped` outputs of three axes get their last two exchanged first. Boxes of a score of at most
    `threshold` are left out; `iou` is that of non-maximum suppression, None where the network has
    done it. `classes` is their number, None if the outputs do not say it.
    """

    decoder: str
    layout: str
    outputs: tuple[str, ...]
    text: str
    options: Mapping[str, Option] = field(default_factory=dict)
    swapped: bool = False
    classes: int | None = None
    threshold: float = MIN_SCORE
    iou: float | None = None
    limit: int = MAX_DETECTIONS

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"a score threshold is between 0 and 1, got {self.threshold}")
        if self.iou is not None and not 0 < self.iou <= 1:
            raise ValueError(f"an IoU is above 0 and at most 1, got {self.iou}")
        if self.limit < 1:
            raise ValueError(f"at least one detection is kept, got {self.limit}")

    @property
    def is_open(self) -> bool:
        """Whether the sample had no boxes, from which their unit follows."""
        return OPEN_UNIT in self.text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        values = asdict(self)
        return values | {"outputs": list(self.outputs), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Head":
        """Read what `to_dict` wrote, also after JSON has made lists of tuples."""
        options = {
            name: tuple(option) if isinstance(option, list) else option
            for name, option in values["options"].items()
        }
        return cls(**{**values, "outputs": tuple(values["outputs"]), "options": options})

    def arrays(self, outputs: Tensors) -> list[NDArray[Any]]:
        """Return the arrays that the function of the layout takes."""
        arrays = [output_array(outputs, name) for name in self.outputs]
        if not self.swapped:
            return arrays
        return [array.swapaxes(1, 2) if array.ndim == 3 else array for array in arrays]


@dataclass(frozen=True, eq=False)
class Sample:
    """Outputs of FP32 for a first batch, from which a head is made once.

    `size` is the (width, height) of the network's input and `classes` how many classes the truth
    has, if it is there. `forced` says that the user named the decoder: then what only tells
    decoders apart is not asked. `pictures` is how many the outputs are of, if their first axis does
    not say it.
    """

    outputs: Tensors
    size: tuple[int, int]
    classes: int | None = None
    forced: bool = False
    pictures: int | None = None

    @property
    def count(self) -> int:
        """How many pictures the outputs are of: `pictures`, or the rows of the first output."""
        if self.pictures is not None:
            return self.pictures
        return len(np.atleast_1d(next(iter(self.arrays.values()), np.zeros(1))))

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The outputs as arrays."""
        return {name: output_array(self.outputs, name) for name in self.outputs}

    def select(self, rank: int, *, integer: bool = False) -> dict[str, NDArray[Any]]:
        """Return the outputs of so many axes that are real numbers, or else integers."""
        return {
            name: array
            for name, array in self.arrays.items()
            if array.ndim == rank and array.dtype.kind in ("iu" if integer else "f")
        }


@dataclass(frozen=True)
class Decoder:
    """A family of heads: `fit` returns how outputs are read, or None if they are not of it."""

    name: str
    task: Task
    text: str
    fit: Callable[[Sample], Head | None]


@dataclass(frozen=True)
class ScoreKind:
    """How scores become probabilities, and which class, if any, is the background."""

    activation: Literal["none", "sigmoid", "softmax"]
    background: Literal["none", "first", "last"]

    @property
    def backgrounds(self) -> int:
        """How many of the scores are those of a background."""
        return 0 if self.background == "none" else 1


def score_kind(scores: Floats) -> ScoreKind:
    """Return what scores [..., classes] are, by these rules.

    Values from 0 to 1 are probabilities, others logits. Probabilities of which each row sums to 1
    are a softmax with a background, which is the first or the last class, whichever is higher on
    average. Logits are those of a softmax with a background if the first or the last class is the
    highest one and above 0 in nine of ten rows; otherwise those of sigmoids.
    """
    rows = np.asarray(scores, np.float32).reshape(-1, scores.shape[-1])
    rows = rows[np.isfinite(rows).all(axis=1)]
    if rows.shape[1] < 2 or not len(rows):
        return ScoreKind("none" if are_probabilities(rows) else "sigmoid", "none")
    if are_probabilities(rows):
        if not np.allclose(rows.sum(axis=1), 1, atol=1e-2):
            return ScoreKind("none", "none")
        return ScoreKind("none", "first" if rows[:, 0].mean() >= rows[:, -1].mean() else "last")
    best = np.where(rows.max(axis=1) > 0, rows.argmax(axis=1), -1)
    if np.mean(best == 0) >= 0.9:
        return ScoreKind("softmax", "first")
    if np.mean(best == rows.shape[1] - 1) >= 0.9:
        return ScoreKind("softmax", "last")
    return ScoreKind("sigmoid", "none")


def are_probabilities(values: NDArray[Any]) -> bool:
    """Return whether all finite values lie from 0 to 1, but for rounding."""
    finite = values[np.isfinite(values)]
    return bool(not finite.size or (finite.min() > -1e-3 and finite.max() < 1 + 1e-3))


def are_ordered(boxes: NDArray[Any]) -> bool:
    """Return whether finite boxes [..., 4] can be corners: no right edge left of its left one."""
    rows = boxes.reshape(-1, 4)
    rows = rows[np.isfinite(rows).all(axis=1)]
    return bool((rows[:, 2:] - rows[:, :2] >= -1e-3).all())


def are_normalized(boxes: NDArray[Any]) -> bool:
    """Return whether boxes are shares of the input and not pixels: all are 2 or less, not all 0."""
    finite = np.abs(boxes[np.isfinite(boxes)])
    return bool(finite.size and 0 < finite.max() <= 2)


def unit_text(boxes: NDArray[Any]) -> str:
    """Return in what boxes are, as `are_normalized` decides."""
    if not boxes[np.isfinite(boxes)].any():
        return OPEN_UNIT
    return "normalized" if are_normalized(boxes) else "in pixels"


def shape_text(array: NDArray[Any]) -> str:
    """Return a shape as messages show it."""
    return f"[{', '.join(map(str, array.shape))}]"


def batch_shape(array: NDArray[Any]) -> str:
    """Return the shape of a batch of any size."""
    return f"[{', '.join(('N', *map(str, array.shape[1:])))}]"


@dataclass(frozen=True)
class MapPlace:
    """How a map lies in an array: its height, and whether the axis of channels is the last."""

    height: int
    channels_last: bool


def map_place(array: NDArray[Any], size: tuple[int, int]) -> MapPlace | None:
    """Return how a map of an input of a (width, height) lies in an array, if it can be one."""
    if not array.size:
        return None
    if array.ndim == 3:
        places = [(array.shape[1:], False)]
    elif array.ndim == 4:
        places = [(array.shape[2:], False), (array.shape[1:3], True)]
    else:
        return None
    for (height, width), channels_last in places:
        if min(height, width) < 2:
            continue
        factors = size[1] / height, size[0] / width
        # Rounded sizes give slightly different factors for the two sides.
        same = abs(height - size[1] * width / size[0]) <= 1
        if same and max(factors) <= COARSEST and min(factors) > 0.2:
            return MapPlace(height, channels_last)
    return None
