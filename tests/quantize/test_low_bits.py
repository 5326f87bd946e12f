"""Grids below 8 bits: the integers that the graph computes, and what runtimes make of them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qconvert.backends import base, cpu
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.scales import Grid, Range, choose_qparams, fake_quantize, quantize
from qconvert.core.tensors import Tensors
from qconvert.graph import patterns
from qconvert.graph.error_attribution import as_consumed, clipping_range, values_by_name
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.measure.output_error import sqnr_db
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.low_bits import describe_low_bits
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan, RestPrecision
from qconvert.quantize.saturation import is_pair_safe
from qconvert.quantize.weights import mse_qparams
from tests.calibrate.activations import summarize
from tests.models import floats, mixed
from tests.quantize.quantized_models import scheme

IMAGES: Tensors = {"image": floats(8, 3, 16, 16, seed=7)}
BACKENDS = ("cpu", "tensorrt")


def plan_of(
    model: ir.Model, backend: str, weights: int, activations: int, rest: RestPrecision = "fp32"
) -> Plan:
    required = scheme(backend)
    grid = replace(required.activations, bits=activations)
    narrow = replace(required, activations=grid, weights=Grid(weights))
    options = QuantizeOptions("percentile:99.9", rest=rest)  # so that some values are clipped
    return make_plan(model, narrow, summarize(model, IMAGES), options)


def exposed(model: ir.Model) -> ir.Model:
    """Return a copy that outputs what each quantizer of an activation reads and gives."""
    copy = model.clone()
    for node in copy.graph:
        quantizer = patterns.find_quantizer(node) if node.op_type == "DequantizeLinear" else None
        for value in (*quantizer.inputs[:1], *node.outputs) if quantizer is not None else ():
            if (
                value is not None
                and value not in copy.graph.outputs
                and value.producer() is not None
            ):
                copy.graph.outputs.append(value)
    return copy


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [4, 6])
def test_activations_are_those_of_the_grid(backend: str, bits: int) -> None:
    model = mixed()
    plan = plan_of(model, backend, 8, bits)
    watched = exposed(apply_plan(model, plan))
    values = {**IMAGES, **open_cpu(watched, keep_qdq=True)(IMAGES)}
    compared, clipped = 0, 0
    for node in watched.graph:
        quantizer = patterns.find_quantizer(node) if node.op_type == "DequantizeLinear" else None
        source = quantizer.inputs[0] if quantizer is not None else None
        if source is None or source.name not in plan.tensors:
            continue
        qparams = choose_qparams(plan.tensors[str(source.name)], plan.activations)
        exact, rounded = values[str(source.name)], values[str(node.outputs[0].name)]
        np.testing.assert_array_equal(rounded, fake_quantize(exact, qparams))
        integers = quantize(exact, qparams)
        clipped += int(((integers == qparams.grid.quant_max) & (exact > rounded)).sum())
        assert len(np.unique(rounded)) <= 2**bits
        compared += 1
    assert compared >= 4
    assert clipped > 0


def test_onnx_runtime_keeps_integer_kernels_and_the_numbers_of_the_graph() -> None:
    model = mixed()
    rewritten = apply_plan(model, plan_of(model, "cpu", 4, 4))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = "optimized.onnx", 4
    onnxruntime.InferenceSession(
        onnx_io.serialize(rewritten), options, providers=["CPUExecutionProvider"]
    )
    operators = [node.op_type for node in onnx.load("optimized.onnx").graph.node]
    # One has a float Clip behind it, which the narrower grid does not make superfluous.
    assert operators.count("QLinearConv") == 4
    by_node, fused = (
        open_cpu(rewritten, keep_qdq=keep)(IMAGES)["scores"] for keep in (True, False)
    )
    assert sqnr_db({"scores": by_node}, {"scores": fused}) > 20  # values near .5 round otherwise


def test_engine_of_the_cpu_computes_the_numbers_of_the_graph(tmp_path: Path) -> None:
    model = mixed()
    graph = tmp_path / "graph.onnx"
    onnx_io.save(apply_plan(model, plan_of(model, "cpu", 4, 4)), graph)
    spec = base.BuildSpec("int8", base.Profile(1, 8, 8))
    (tmp_path / "engine").mkdir()
    engine = cpu.build(graph, spec, tmp_path / "engine", lambda text, share: None)
    built = onnx_io.load(engine.folder / engine.files[0])
    expected, outputs = (open_cpu(net)(IMAGES) for net in (onnx_io.load(graph), built))
    assert sqnr_db(expected, outputs) > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_bit_weights_are_small_integers_stored_as_int8(backend: str) -> None:
    model = mixed()
    rewritten = apply_plan(model, plan_of(model, backend, 4, 8))
    stored = [
        array
        for node in rewritten.graph
        if node.op_type == "DequantizeLinear"
        and (array := patterns.constant_array(node.inputs[0])) is not None
        and array.dtype.itemsize == 1
    ]
    assert len(stored) >= 5
    assert {array.dtype.name for array in stored} == {"int8"}
    assert max(int(np.abs(array).max()) for array in stored) == 7
    assert not any(
        node.op_type == "Clip" and patterns.clips_integers(node) for node in rewritten.graph
    )


def test_limit_of_pairs_is_free_below_8_bits() -> None:
    (node,) = (ir.node("Conv", [ir.val("x"), ir.val("w")]),)
    weight = floats(8, 16, 3, 3)
    free, limited = (mse_qparams(weight, Grid(7), 0, "fp32", paired) for paired in (None, node))
    np.testing.assert_array_equal(limited.scale, free.scale)
    model = mixed()
    plan = replace(plan_of(model, "cpu", 7, 8), portable=False)
    assert is_pair_safe(apply_plan(model, plan))


def test_coarse_weights_are_clipped_further() -> None:
    weight = floats(1, 4096)
    largest = float(np.abs(weight).max())
    ends = {
        bits: float(mse_qparams(weight, Grid(bits), 0).scale[0]) * Grid(bits).symmetric_max
        for bits in (4, 8)
    }
    assert ends[4] < 0.8 * largest < ends[8]


@pytest.mark.parametrize("backend", BACKENDS)
def test_attribution_reads_through_the_clip(backend: str) -> None:
    model = mixed()
    plan = plan_of(model, backend, 8, 4)
    values = values_by_name(apply_plan(model, plan).graph)
    consumed = as_consumed(values["image"])
    producer = consumed.producer()
    assert producer is not None
    assert producer.op_type == "DequantizeLinear"
    grid, limits = clipping_range(consumed), plan.activations
    assert grid is not None
    qparams = choose_qparams(plan.tensors["image"], limits)
    zero, step = int(qparams.zero_point), float(qparams.scale)
    assert grid.radius == pytest.approx(step * limits.levels / 2)
    assert set(grid.ends) == {limits.quant_min, limits.quant_max} - {zero}
    clip = grid.integers.producer()
    assert clip is not None
    assert clip.op_type == "Clip"


def test_half_precision_around_a_low_bit_grid_keeps_the_outputs() -> None:
    model = mixed()
    rewritten = apply_plan(model, plan_of(model, "tensorrt", 8, 4, rest="fp16"))
    halved = convert_to_half(rewritten, "fp16", {}).model
    onnx_io.require_valid(halved)
    expected, outputs = (open_cpu(net, keep_qdq=True)(IMAGES) for net in (rewritten, halved))
    assert sqnr_db(expected, outputs) > 20


def test_notes_give_the_bytes_of_the_weights() -> None:
    model = mixed()
    plan = plan_of(model, "cpu", 4, 4)
    rewritten = apply_plan(model, plan)
    weights, activations = describe_low_bits(rewritten, plan)
    count = sum(
        int(np.prod(value.shape.numpy()))
        for value in model.graph.initializers.values()
        if value.shape is not None and len(value.shape) > 1
    )
    assert f"4-bit weights are stored as INT8, {count / 1e6:.3f} MB" in weights
    assert f"these bits would take {count / 2 / 1e6:.3f} MB" in weights
    assert "no engine smaller" in weights
    assert "4-bit activations are stored as INT8" in activations
    name, layer = next((name, row) for name, row in plan.layers.items() if row.weight is not None)
    assert layer.weight is not None
    plan.layers[name] = replace(layer, weight=replace(layer.weight, bits=8))
    weights, _ = describe_low_bits(apply_plan(model, plan), plan)
    assert re.match(r"4-bit weights \(\d+\.\d% of them keep 8\) are stored", weights)
    plan = plan_of(model, "cpu", 8, 8)
    assert describe_low_bits(apply_plan(model, plan), plan) == ()


def test_range_without_negative_values_uses_every_integer() -> None:
    grid = replace(scheme("cpu").activations, bits=4)
    qparams = choose_qparams(Range(0.0, 3.0), grid)
    assert int(qparams.zero_point) == grid.quant_min
    assert float(qparams.scale) == pytest.approx(0.2)
