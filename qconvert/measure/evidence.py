"""Evidence of where errors come from: ranges, weights, feature maps and changed predictions.

Images are files, named relative to the run's folder; a report without its folder lacks them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.calibrate import methods
from qconvert.calibrate.summary import Summary, clipped_share, equal_width_counts
from qconvert.core.scales import choose_qparams
from qconvert.graph.error_attribution import values_by_name
from qconvert.graph.patterns import FUSIBLE_ACTIVATIONS, WEIGHTED, constant_array, producer_of
from qconvert.graph.taps import find_observed_tensors
from qconvert.measure.layer_errors import LayerError, worst_layers
from qconvert.quantize.cross_layer import scaled_tensors
from qconvert.quantize.plan import Plan
from qconvert.quantize.scheme import linear_layer

SHOWN_METHODS = ("minmax", "percentile:99.99", "entropy", "mse")
HISTOGRAM_BARS = 80


@dataclass(frozen=True)
class MethodInterval:
    """The range that a method chooses for a tensor."""

    method: str
    low: float
    high: float


@dataclass(frozen=True)
class TensorRange:
    """The values of one activation over all calibration images, and the range of a variant.

    `shares` are those of all values in equal parts from `low` to `high`. `kept` has the range of
    each method, `chosen` that of the variant's plan, whose quantized values are `step` apart.
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

    Of many channels, evenly spread ones are listed; `channels` is how many there are.
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
    """One figure: channels of a tensor for one image, in rows from top to bottom.

    The strongest channels come first, the one with the largest error last. All rows of values share
    one colour scale from `low` to `high`; differences share another, `zoom` times as strong, around
    zero.
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
    """A small copy of an evaluation image.

    With a `variant` it shows the boxes or masks of FP32 on the left and those of the variant on the
    right.
    """

    image: str
    picture: str
    variant: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that a run shows of its errors, beside the layer errors.

    `classes` has the names of the classes that the report mentions, by number.
    """

    ranges: tuple[TensorRange, ...] = ()
    weights: tuple[WeightRange, ...] = ()
    feature_maps: tuple[FeatureMap, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    classes: dict[str, str] | None = None


def tensor_ranges(
    variant: str,
    plan: Plan,
    model: ir.Model,
    summaries: Mapping[str, Summary],
    layers: Sequence[LayerError],
) -> tuple[TensorRange, ...]:
    """Return the ranges of the most clipped and the widest tensors and of those with most error."""
    aliases = find_observed_tensors(model).aliases
    # Cross-layer equalization scales these: the calibrated values are not those of the engine.
    scaled = scaled_tensors(model.graph, plan.equalized)
    summary_of = {}
    for name in plan.tensors:
        summary = summaries.get(aliases.get(name, name))
        if summary is not None and summary.size and name not in scaled:
            summary_of[name] = summary
    clipped = {
        name: clipped_share(summary, plan.tensors[name]) for name, summary in summary_of.items()
    }
    reasons: dict[str, str] = {}
    ranked = {
        "most clipped": sorted(filter(clipped.get, clipped), key=lambda name: -clipped[name]),
        "among the largest errors made": [layer.tensor for layer in worst_layers(layers)],
        "widest": sorted(summary_of, key=lambda name: summary_of[name].low - summary_of[name].high),
    }
    for reason, names in ranked.items():
        new = [name for name in names if name in summary_of and name not in reasons]
        reasons.update(dict.fromkeys(new[:4], reason))
    values = values_by_name(model.graph)
    ranges = []
    for name in filter(reasons.get, summary_of):
        summary, chosen, node = summary_of[name], plan.tensors[name], values[name].producer()
        counts = equal_width_counts(summary, HISTOGRAM_BARS)
        kept = []
        for method in SHOWN_METHODS:
            limits = methods.find_method(method)(summary, plan.grid_of(name))
            kept.append(MethodInterval(method, limits.low, limits.high))
        ranges.append(
            TensorRange(
                tensor=name,
                op=node.op_type if node is not None else "input",
                variant=variant,
                why=reasons[name],
                low=summary.low,
                high=summary.high,
                shares=tuple(_shorten(count / (float(counts.sum()) or 1.0)) for count in counts),
                kept=tuple(kept),
                chosen=MethodInterval(plan.method, chosen.low, chosen.high),
                step=float(choose_qparams(chosen, plan.grid_of(name), plan.rest).scale),
                clipped=100 * clipped[name],
            )
        )
    return tuple(ranges)


def weight_ranges(model: ir.Model, layers: Sequence[LayerError]) -> tuple[WeightRange, ...]:
    """Return the weights of the layers with the largest errors, channel by channel."""
    values = values_by_name(model.graph)
    ranges: dict[str, WeightRange] = {}
    for layer in worst_layers(layers):
        node = values[layer.tensor].producer() if layer.tensor in values else None
        # The tensor of a fused Relu or Clip belongs to the convolution before it.
        while node is not None and node.op_type in FUSIBLE_ACTIVATIONS:
            node = producer_of(node.inputs[0])
        weight = linear_layer(node).weight if node and node.op_type in WEIGHTED else None
        array = constant_array(node.inputs[weight.slot]) if node and weight else None
        if node is None or weight is None or array is None or array.shape[weight.axis] < 2:
            continue
        channels = np.moveaxis(array.astype(np.float64), weight.axis, 0)
        maxima = np.sort(np.abs(channels.reshape(len(channels), -1)).max(axis=1))[::-1]
        shown = np.linspace(0, maxima.size - 1, 160).round().astype(int)
        largest = tuple(_shorten(value) for value in maxima[np.unique(shown)])
        name = node.name or ""
        ranges[name] = WeightRange(name, node.op_type, maxima.size, largest)
        if len(ranges) == 6:
            break
    return tuple(ranges.values())


def _shorten(value: float) -> float:
    return float(f"{value:.6g}")
