"""The ranges and weights that a report shows."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from qconvert.calibrate.summary import Summary
from qconvert.measure.evidence import HISTOGRAM_BARS, SHOWN_METHODS, tensor_ranges, weight_ranges
from qconvert.measure.layer_errors import LayerError, measure_layer_errors
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import find_sites, scaled_tensors
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from tests.calibrate.activations import summarize
from tests.models import floats, mixed
from tests.quantize.quantized_models import scheme

IMAGES = floats(16, 3, 16, 16)


@pytest.fixture(scope="module")
def calibrated() -> tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]]:
    model = mixed()
    summaries = summarize(model, {"image": IMAGES})
    plan = make_plan(model, scheme("cpu"), summaries, QuantizeOptions())
    layers = measure_layer_errors(model, apply_plan(model, plan), [{"image": IMAGES}])
    return summaries, plan, layers


def test_ranges_show_values_methods_and_clipping(
    calibrated: tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]],
) -> None:
    summaries, plan, layers = calibrated
    ranges = tensor_ranges("cpu-int8", plan, mixed(), summaries, layers)
    assert 4 <= len(ranges) <= 12
    for shown in ranges:
        assert sum(shown.shares) == pytest.approx(1.0, abs=1e-3)
        assert len(shown.shares) == HISTOGRAM_BARS
        assert [kept.method for kept in shown.kept] == [*SHOWN_METHODS]
        minmax = shown.kept[0]
        assert (minmax.low, minmax.high) == (shown.low, shown.high)
        assert (shown.chosen.low, shown.chosen.high) == (
            plan.tensors[shown.tensor].low,
            plan.tensors[shown.tensor].high,
        )
        span = max(shown.chosen.high, 0.0) - min(shown.chosen.low, 0.0)
        assert shown.step == pytest.approx(span / 255, rel=1e-3)
        assert 0 <= shown.clipped < 5
    assert {shown.why for shown in ranges} >= {"most clipped", "among the largest errors made"}


def test_equalized_tensors_are_not_shown(
    calibrated: tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]],
) -> None:
    summaries, plan, layers = calibrated
    graph = mixed().graph
    factors = {str(site.tensor.name): (1.0,) * site.channels for site in find_sites(graph)}
    scaled = scaled_tensors(graph, factors)
    before = {shown.tensor for shown in tensor_ranges("cpu-int8", plan, mixed(), summaries, layers)}
    after = tensor_ranges("cpu-int8", replace(plan, equalized=factors), mixed(), summaries, layers)
    assert before & scaled
    assert not {shown.tensor for shown in after} & scaled


def test_weights_of_the_worst_layers_are_shown_through_fused_activations(
    calibrated: tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]],
) -> None:
    _, _, layers = calibrated
    ranges = weight_ranges(mixed(), layers)
    assert 1 <= len(ranges) <= 6
    by_node = {weights.node: weights for weights in ranges}
    assert "wide" in by_node or "stem" in by_node  # named after a Relu or Clip
    for weights in ranges:
        assert list(weights.largest) == sorted(weights.largest, reverse=True)
        assert weights.channels == len(weights.largest)
    first = next(iter(by_node.values()))
    node = next(node for node in mixed().graph if node.name == first.node)
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    largest = np.abs(array.reshape(array.shape[0], -1)).max(axis=1)
    assert first.largest[0] == pytest.approx(float(largest.max()), rel=1e-5)
