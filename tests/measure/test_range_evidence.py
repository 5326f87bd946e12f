"""Which ranges and weights a report shows."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import Calibration, CalibrationImage, Origin
from qconvert.calibrate.collect import collect, make_tapped_runner
from qconvert.calibrate.summary import Summary
from qconvert.graph.taps import add_calibration_taps
from qconvert.measure.layer_errors import LayerError, measure_layer_errors
from qconvert.measure.range_evidence import (
    HISTOGRAM_BARS,
    SHOWN_METHODS,
    tensor_ranges,
    weight_ranges,
)
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import channel_count, find_sites, scaled_tensors
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from tests.models import floats, mixed
from tests.quantize.quantized_models import scheme

IMAGES = floats(16, 3, 16, 16)


@pytest.fixture(scope="module")
def known() -> tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]]:
    model = mixed()
    tapped = add_calibration_taps(model)
    origin = Origin(
        "",
        tuple(each.tensor for each in tapped.taps),
        (CalibrationImage("", ""),) * 16,
        {},
        "",
        exact=False,
    )
    run = make_tapped_runner(open_cpu(tapped.model), tapped)
    answers = [run((list(range(16)), {"image": IMAGES}))]
    found = collect(answers, tapped, Calibration(origin), lambda collector: None)
    plan = make_plan(model, scheme("cpu"), found.summaries, QuantizeOptions())
    layers = measure_layer_errors(model, apply_plan(model, plan), [{"image": IMAGES}])
    return found.summaries, plan, layers


def test_ranges_say_what_was_seen_kept_and_clipped(
    known: tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]],
) -> None:
    summaries, plan, layers = known
    found = tensor_ranges("cpu-int8", plan, (mixed(), summaries), layers)
    assert 4 <= len(found) <= 12
    for each in found:
        assert sum(each.shares) == pytest.approx(1.0, abs=1e-3)
        assert len(each.shares) == HISTOGRAM_BARS
        assert [kept.method for kept in each.kept] == [*SHOWN_METHODS]
        whole = each.kept[0]
        assert (whole.low, whole.high) == (each.low, each.high)
        assert (each.chosen.low, each.chosen.high) == (
            plan.tensors[each.tensor].low,
            plan.tensors[each.tensor].high,
        )
        span = max(each.chosen.high, 0.0) - min(each.chosen.low, 0.0)
        assert each.step == pytest.approx(span / 255, rel=1e-3)
        assert 0 <= each.clipped < 5
    assert {each.why for each in found} >= {"most clipped", "among the largest errors made"}


def test_tensors_whose_channels_were_divided_are_not_shown_as_they_were_seen(
    known: tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]],
) -> None:
    summaries, plan, layers = known
    graph = mixed().graph
    factors = {str(each.tensor.name): (1.0,) * channel_count(each) for each in find_sites(graph)}
    divided = scaled_tensors(graph, factors)
    seen = (mixed(), summaries)
    before = {each.tensor for each in tensor_ranges("cpu-int8", plan, seen, layers)}
    after = tensor_ranges("cpu-int8", replace(plan, equalized=factors), seen, layers)
    assert before & divided
    assert not {each.tensor for each in after} & divided


def test_weights_are_those_of_the_worst_layers_seen_through_what_is_fused(
    known: tuple[Mapping[str, Summary], Plan, tuple[LayerError, ...]],
) -> None:
    _, _, layers = known
    found = weight_ranges(mixed(), layers)
    assert 1 <= len(found) <= 6
    by_node = {each.node: each for each in found}
    assert "wide" in by_node or "stem" in by_node  # made by them, and named after a Relu or Clip
    for each in found:
        assert list(each.largest) == sorted(each.largest, reverse=True)
        assert each.channels == len(each.largest)
    some = next(iter(by_node.values()))
    node = next(node for node in mixed().graph if node.name == some.node)
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    largest = np.abs(array.reshape(array.shape[0], -1)).max(axis=1)
    assert some.largest[0] == pytest.approx(float(largest.max()), rel=1e-5)
