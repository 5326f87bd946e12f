"""What shows where errors come from: ranges, weights, feature maps, and images of other answers.

Pictures are files, named relative to the run's folder; a report without its folder lacks them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodInterval:
    """What a range method keeps of a tensor."""

    method: str
    low: float
    high: float


@dataclass(frozen=True)
class TensorRange:
    """The values of one activation over all calibration images, and what a variant rounds them to.

    `shares` are those of all values in equal parts from `low` to `high`. `kept` has what each
    method would choose; `chosen` is in the plan of the variant, whose integers are `step` apart.
    `clipped` is the percentage of values outside. `why` says why this tensor is shown.
    """

    tensor: str
    op: str
    variant: str
    why: str
    low: float
    high: float
    shares: tuple[float, ...]
    kept: tuple[MethodInterval, ...]
    chosen: MethodInterval
    step: float
    clipped: float


@dataclass(frozen=True)
class WeightRange:
    """The largest weight of each output channel of a layer, the largest channel first.

    Of many channels evenly spread ones are named; `channels` is how many there are.
    """

    node: str
    op: str
    channels: int
    largest: tuple[float, ...]


@dataclass(frozen=True)
class FeatureMapRow:
    """A row of maps: of a variant, or its difference from FP32; SQNR is of the whole tensor."""

    variant: str
    difference: bool = False
    sqnr_db: float | None = None


@dataclass(frozen=True)
class FeatureMap:
    """One picture: channels of a tensor for one image, in rows from top to bottom.

    The strongest channels come first, the last one has the largest error. All rows of values share
    one colour scale from `low` to `high`; differences have the same one, `zoom` times as strong,
    around zero.
    """

    tensor: str
    node: str
    image: str
    picture: str
    channels: tuple[int, ...]
    rows: tuple[FeatureMapRow, ...]
    low: float
    high: float
    zoom: float
    why: str


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of an evaluation image."""

    image: str
    picture: str


@dataclass(frozen=True)
class Evidence:
    """All that a run shows of its errors, beside the figures of the layers.

    `classes` has the names of the classes that the report speaks of, by their numbers.
    """

    ranges: tuple[TensorRange, ...] = ()
    weights: tuple[WeightRange, ...] = ()
    feature_maps: tuple[FeatureMap, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    classes: dict[str, str] | None = None
