"""Trials of single blocks give the outputs of the whole network with that block in float."""

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.core.tensors import RunModel, Tensors
from qconvert.graph.patterns import constant_array
from qconvert.optimize.blocks import find_blocks
from qconvert.optimize.mixed_precision import (
    SearchModel,
    find_first_change,
    run_single_blocks,
)
from qconvert.quantize import rounded_weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.rounded_weights import RoundedWeight
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned, scheme

BATCHES = [{"image": floats(4, 3, 16, 16, seed=seed)} for seed in range(3)]


def model_of(backend: str) -> SearchModel:
    return SearchModel(mixed(), planned(mixed(), backend), scheme(backend))


def assert_same_outputs(model: SearchModel, plan: Plan, outputs: list[Tensors]) -> None:
    run = model.open(plan)
    for batch, output in zip(BATCHES, outputs, strict=True):
        np.testing.assert_allclose(output["scores"], run(batch)["scores"], atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("max_bytes", [10**9, 20_000, 0])
def test_outputs_do_not_depend_on_the_tensors_held(backend: str, max_bytes: int) -> None:
    model = model_of(backend)
    blocks = find_blocks(model.model, model.plan)
    assert len(blocks) == 6
    trials = run_single_blocks(model, blocks, BATCHES, max_bytes)
    for block, outputs in zip(blocks, trials, strict=True):
        assert_same_outputs(model, model.restore_float([block]), outputs)


def test_blocks_of_an_equalized_model_are_tried_too() -> None:
    model = model_of("tensorrt")
    factors = {"b": tuple(float(factor) for factor in range(1, 17))}
    model = replace(model, plan=replace(model.plan, equalized=factors))
    blocks = find_blocks(model.model, model.plan)
    for block, outputs in zip(blocks, run_single_blocks(model, blocks, BATCHES), strict=True):
        assert_same_outputs(model, model.restore_float([block]), outputs)


@dataclass(frozen=True)
class RecordingModel(SearchModel):
    """A model that records the first node of each segment it opens, by plan."""

    segments: list[tuple[bool, str]] = field(default_factory=list)

    def open_segment(self, segment: ir.Model, plan: Plan) -> RunModel:
        self.segments.append((plan == self.plan, segment.graph[0].name or ""))
        return super().open_segment(segment, plan)


def test_nodes_before_a_block_run_once() -> None:
    model = RecordingModel(mixed(), planned(mixed(), "cpu"), scheme("cpu"))
    blocks = find_blocks(model.model, model.plan)
    list(run_single_blocks(model, blocks, BATCHES))
    firsts = [find_first_change(model, model.restore_float([block])) for block in blocks]
    starts = [name for is_prefix, name in model.segments if not is_prefix]
    nodes = [node.name for node in model.model.graph]
    assert starts == [nodes[first] for first in firsts if first]
    assert firsts == sorted(firsts)
    prefixes = [name for is_prefix, name in model.segments if is_prefix]
    assert len(prefixes) == len(set(prefixes))


def test_learned_weights_stay_in_int8_nodes_and_leave_float_ones() -> None:
    plain = model_of("cpu")
    weights = {
        name: RoundedWeight(np.ones((16, 16, 1, 1), np.int8), np.full(16, 0.01, np.float32), None)
        for name in ("narrow", "side")
    }
    learned = replace(plain, plan=rounded_weights.with_digest(plain.plan, weights), weights=weights)
    blocks = {block.name: block for block in find_blocks(plain.model, plain.plan)}
    plans = {name: learned.restore_float([block]) for name, block in blocks.items()}
    for name, plan in plans.items():
        nodes = {node.name: node for node in apply_plan(learned.model, plan, weights).graph}
        for weight in weights:
            float_weight = constant_array(nodes[weight].inputs[1])
            assert (float_weight is not None) == (weight == name)
    (outputs,) = run_single_blocks(learned, [blocks["narrow"]], BATCHES)
    assert_same_outputs(learned, plans["narrow"], outputs)
