"""Error attribution: exposed tensors, and the sums of incoming and own errors of layers."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.graph.error_attribution import (
    OUTPUT_PREFIX,
    REFERENCE_PREFIX,
    as_consumed,
    build_attribution_model,
    clipping_range,
    comparable_tensors,
    expose_tensors,
    values_by_name,
)
from qconvert.graph.fp16.convert import convert_to_half, emulate_half
from qconvert.graph.taps import PREFIX
from qconvert.quantize.apply_plan import apply_plan
from tests.models import floats, from_text, mixed
from tests.quantize.quantized_models import planned

IMAGES = floats(4, 3, 16, 16)


def quantize(scheme: str) -> tuple[ir.Model, ir.Model]:
    reference = mixed()
    return reference, apply_plan(reference, planned(reference, scheme))


def half_model() -> ir.Model:
    return convert_to_half(mixed(), "fp16", {}).model


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_comparable_tensors_are_those_of_both_networks_as_consumed(scheme: str) -> None:
    reference, model = quantize(scheme)
    tensors = comparable_tensors(reference, model)
    assert {"image", "a", "narrow", "sum", "last", "c", "scores"} & {*tensors} >= {"a", "scores"}
    # A tensor before a fused Relu or Clip is not compared, nor one whose node only moves values.
    assert not {"stem", "wide", "small", "flat"} & {*tensors}
    # TensorRT reads the sum in float; both quantize everything after the first Clip.
    producers = [as_consumed(values_by_name(model.graph)[name]).producer() for name in ("a", "sum")]
    operators = [node.op_type for node in producers if node is not None]
    assert operators == ["DequantizeLinear", "DequantizeLinear" if scheme == "cpu" else "Add"]


def test_exposed_tensors_equal_the_outputs_of_the_model() -> None:
    reference, model = quantize("cpu")
    tensors = comparable_tensors(reference, model)
    exposed = open_cpu(expose_tensors(model, tensors), keep_qdq=True)({"image": IMAGES})
    outputs = open_cpu(model, keep_qdq=True)({"image": IMAGES})
    assert [*exposed] == [OUTPUT_PREFIX + name for name in tensors]
    np.testing.assert_array_equal(exposed[OUTPUT_PREFIX + "scores"], outputs["scores"])


def test_sums_equal_those_of_the_exposed_tensors() -> None:
    reference, model = quantize("cpu")
    attribution, precisions = build_attribution_model(model, comparable_tensors(reference, model))
    names = [*precisions]
    exact = open_cpu(expose_tensors(reference, names), keep_qdq=True)({"image": IMAGES})
    actual = open_cpu(expose_tensors(model, names), keep_qdq=True)({"image": IMAGES})
    references = {REFERENCE_PREFIX + name: exact[OUTPUT_PREFIX + name] for name in names}
    sums = open_cpu(attribution, keep_qdq=True)({"image": IMAGES, **references})
    for name in names:
        a, b = exact[OUTPUT_PREFIX + name], actual[OUTPUT_PREFIX + name]
        error = pytest.approx(np.square(a - b).sum(), rel=1e-4, abs=1e-9)
        assert sums[f"{PREFIX}signal.{name}"] == pytest.approx(np.square(a).sum(), rel=1e-5)
        assert sums[f"{PREFIX}power.{name}"] == pytest.approx(np.square(b).sum(), rel=1e-5)
        assert sums[f"{PREFIX}arriving.{name}"] == error


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_own_error_of_a_layer_is_that_on_exact_inputs(scheme: str) -> None:
    """Compare with a model in which no other tensor is quantized."""
    reference = mixed()
    plan = planned(reference, scheme)
    model = apply_plan(reference, plan)
    attribution, precisions = build_attribution_model(model, comparable_tensors(reference, model))
    names = [*precisions]
    exact = open_cpu(expose_tensors(reference, names), keep_qdq=True)({"image": IMAGES})
    references = {REFERENCE_PREFIX + name: exact[OUTPUT_PREFIX + name] for name in names}
    sums = open_cpu(attribution, keep_qdq=True)({"image": IMAGES, **references})
    for name in ("scores", "c"):
        error = _own_error(reference, model, name, references)
        assert sums[f"{PREFIX}made.{name}"] == pytest.approx(error, rel=1e-3)


def _own_error(
    reference: ir.Model, model: ir.Model, tensor: str, references: dict[str, np.ndarray]
) -> float:
    """Cut the network before a layer, and feed the cut ends."""
    cut = model.clone()
    values = values_by_name(cut.graph)
    ends = {
        name: as_consumed(values[name])
        for name in comparable_tensors(reference, model)
        if name != tensor
    }
    feeds = {}
    for name, value in ends.items():
        entry = ir.Value(name=f"cut.{name}", shape=value.shape, type=value.type)
        cut.graph.inputs.append(entry)
        ir.convenience.replace_all_uses_with(value, entry, replace_graph_outputs=True)
        feeds[f"cut.{name}"] = references[REFERENCE_PREFIX + name]
    cut.graph.outputs[:] = [as_consumed(values[tensor])]
    outputs = open_cpu(cut, keep_qdq=True)({"image": IMAGES, **feeds})
    error = next(iter(outputs.values())) - references[REFERENCE_PREFIX + tensor]
    return float(np.square(error.astype(np.float64)).sum())


def test_clipping_range_has_both_ends_of_a_symmetric_grid() -> None:
    reference, model = quantize("tensorrt")
    grid = clipping_range(values_by_name(model.graph)["c"])
    assert grid is not None
    assert grid.ends == (-128, 127)
    step = 2 * grid.radius / 256
    assert grid.middle == pytest.approx(-step / 2)
    assert clipping_range(values_by_name(reference.graph)["c"]) is None


def test_emulated_half_precision_rounds_at_every_node() -> None:
    model = half_model()
    emulated = emulate_half(model)
    assert onnx_io.fingerprint(model) == onnx_io.fingerprint(half_model())
    computing = [node for node in emulated.graph if node.op_type not in ("Cast",)]
    assert all(
        value.dtype is not ir.DataType.FLOAT16
        for node in computing
        for value in (*node.inputs, *node.outputs)
        if value is not None
    )
    tensors = comparable_tensors(mixed(), model)
    exposed = open_cpu(expose_tensors(model, tensors), keep_qdq=True)({"image": IMAGES})
    for name in ("a", "sum", "c"):
        inner = exposed[OUTPUT_PREFIX + name]
        np.testing.assert_array_equal(inner, inner.astype(np.float16).astype(np.float32))
    exact = open_cpu(mixed())({"image": IMAGES})["scores"]
    assert np.abs(exposed[OUTPUT_PREFIX + "scores"] - exact).max() > 1e-5


def test_precision_of_a_layer_is_that_of_its_inputs() -> None:
    reference, model = quantize("cpu")
    assert _precisions(reference, model)["c"] == "int8"
    half = _precisions(reference, half_model())
    assert half["c"] == "fp16"
    assert "image" not in half


def test_quantized_constant_output_is_an_integer_layer() -> None:
    header = (
        '<ir_version: 10, opset_import: ["": 20]>\nnet (float[2] x) => (float[2] y, float[2] k)'
    )
    reference = from_text(f"{header} {{ y = Relu (x) k = Neg (c) }}", c=floats(2))
    quantized = "{ y = Relu (x) d = DequantizeLinear (c, s) k = Neg (d) }"
    integers, step = np.array([3, 5], np.int8), np.array(0.5, np.float32)
    model = from_text(f"{header} {quantized}", c=integers, s=step)
    assert _precisions(reference, model) == {"y": "fp32", "k": "int8"}


def _precisions(reference: ir.Model, model: ir.Model) -> Mapping[str, str]:
    return build_attribution_model(model, comparable_tensors(reference, model))[1]
