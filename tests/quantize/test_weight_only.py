"""Weight-only formats: what is stored as integers, what the graph computes, what runs it."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import backends
from qconvert.backends.base import LoadSpec, scheme_for
from qconvert.backends.ort import open_cpu
from qconvert.backends.ort_coverage import optimized_graph
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.formats import QuantizedFormat
from qconvert.core.tensors import Tensors
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.graph.patterns import constant_array
from qconvert.measure.output_error import sqnr_db
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.weight_only import require_groups
from qconvert.quantize.weight_only_graph import prepare_opset, round_layer, weight_rows
from tests.models import floats, from_text, mixed, ops
from tests.quantize.quantized_models import model

ROWS, STACK, WORDS = "(float[N, 80] x)", "(float[N, 10, 80] x)", "(int64[N, 6] i)"
FORMATS: tuple[QuantizedFormat, ...] = ("int4-weights", "int8-weights")
GRAPHS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "a product of stacked rows": ("y = MatMul (x, w)", STACK, {"w": (80, 48)}),
    "a product and its bias": (
        "h = MatMul (x, w) y = Add (h, b)", STACK, {"w": (80, 48), "b": (48,)},
    ),
    "a Gemm": ("y = Gemm (x, w, b)", ROWS, {"w": (80, 48), "b": (48,)}),
    "a Gemm of a transposed weight": (
        "y = Gemm <transB: int = 1> (x, w, b)", ROWS, {"w": (48, 80), "b": (48,)},
    ),
    "a Gemm with alpha and beta": (
        "y = Gemm <transB: int = 1, alpha: float = 0.5, beta: float = -2.0> (x, w, b)", ROWS,
        {"w": (48, 80), "b": (48,)},
    ),
    "an odd number of outputs": ("y = MatMul (x, w)", ROWS, {"w": (80, 7)}),
    "a table": ("y = Gather (w, i)", WORDS, {"w": (50, 80)}),
}  # fmt: skip


def plan_of(
    before: ir.Model,
    name: QuantizedFormat = "int4-weights",
    backend: str = "cpu",
    **settings: object,
) -> Plan:
    for node in before.graph:
        node.name = node.outputs[0].name
    chosen = QuantizeConfig(**{"group": 32, **settings})  # type: ignore[arg-type]
    scheme = scheme_for(chosen, backends.requirements(backend), name)
    return make_plan(before, scheme, {}, QuantizeOptions("in float"), name)


def rewritten(before: ir.Model, plan: Plan) -> ir.Model:
    after = apply_plan(before, plan)
    onnx_io.require_valid(after)
    return after


def feeds(inputs: str) -> Tensors:
    if inputs is WORDS:
        return {"i": np.random.default_rng(0).integers(-50, 50, (3, 6))}
    return {"x": floats(*((3, 10, 80) if inputs is STACK else (5, 80)), seed=3)}


def float_model(before: ir.Model, plan: Plan) -> ir.Model:
    """Return the model with the values that its integers stand for, in float."""
    prepared = prepare_opset(before).clone()
    for node in prepared.graph:
        layer = plan.layers.get(node.name or "")
        if layer is not None and layer.weight is not None:
            value = node.inputs[layer.weight.slot]
            assert value is not None
            array = constant_array(value)
            assert array is not None
            rows = round_layer(node, value, plan).dequantize()
            transposed = weight_rows(node, array.astype(np.float32)).shape != array.shape
            value.const_value = ir.tensor(rows.T if transposed else rows, name=value.name)
    return prepared


@pytest.mark.parametrize("group", [32, "channel"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_both_forms_compute_with_the_same_weights(
    graph: str, name: QuantizedFormat, group: int | str
) -> None:
    body, inputs, shapes = GRAPHS[graph]
    before = model(body, f"{inputs} => (float[N] y)", **shapes)
    plan = plan_of(before, name, group=group)
    kernels = rewritten(before, plan)
    expected = open_cpu(float_model(before, plan))(feeds(inputs))
    # Kernels of products round their inputs to 8 bits.
    assert sqnr_db(expected, open_cpu(kernels)(feeds(inputs))) > 36
    standard = rewritten(before, Plan(**{**plan.__dict__, "kernels": "onnx"}))
    written = open_cpu(standard, keep_qdq=True)(feeds(inputs))
    np.testing.assert_allclose(written["y"], expected["y"], rtol=1e-4, atol=1e-4)
    assert set(ops(standard)) <= {"DequantizeLinear", "MatMul", "Gemm", "Add", "Gather"}
    original = open_cpu(before)(feeds(inputs))
    assert sqnr_db(original, written) > (40 if name == "int8-weights" else 17)
    sizes = [onnx_io.weight_bytes(form) for form in (before, kernels, standard)]
    assert max(sizes[1:]) < (0.45 if name == "int8-weights" else 0.35) * sizes[0]


@pytest.mark.parametrize("name", FORMATS)
def test_cpu_graph_names_the_kernels_of_onnxruntime(name: QuantizedFormat, tmp_path: Path) -> None:
    body = "e = Gather (t, i) h = MatMul (e, w) y = Gemm <transB: int = 1> (f, v, b)"
    body = body.replace("y = Gemm", "f = Flatten (h) y = Gemm")
    before = model(
        body, f"{WORDS} => (float[N, 16] y)", t=(50, 64), w=(64, 32), v=(16, 192), b=(16,)
    )
    after = rewritten(before, plan_of(before, name))
    assert ops(after) == ["GatherBlockQuantized", "MatMulNBits", "Flatten", "MatMulNBits"]
    bits = {node.attributes.get_int("bits") for node in after.graph if node.op_type != "Flatten"}
    assert bits == {int(name[3])}
    assert sorted(after.graph.initializers) == sorted(
        {
            "b",
            *(
                str(value.name)
                for node in after.graph
                for value in node.inputs
                if value is not None
            ),
        }
        - {str(value.name) for value in (*after.graph.inputs, *(n.outputs[0] for n in after.graph))}
    )
    onnx_io.save(after, tmp_path / "net.onnx")
    spec = LoadSpec((("CPUExecutionProvider", {}),), ())
    fused = Counter(node.op_type for node in optimized_graph(tmp_path / "net.onnx", spec))
    assert (fused["MatMulNBits"], fused["GatherBlockQuantized"]) == (2, 1)


def test_onnxruntime_fuses_the_standard_form_of_products(tmp_path: Path) -> None:
    body = "h = MatMul (x, w) y = Gemm <transB: int = 1> (h, v, b)"
    before = model(body, f"{ROWS} => (float[N, 16] y)", w=(80, 32), v=(16, 32), b=(16,))
    plan = Plan(**{**plan_of(before).__dict__, "kernels": "onnx"})
    onnx_io.save(rewritten(before, plan), tmp_path / "net.onnx")
    spec = LoadSpec((("CPUExecutionProvider", {}),), ())
    fused = [node.op_type for node in optimized_graph(tmp_path / "net.onnx", spec)]
    assert fused.count("MatMulNBits") == 2
    assert "DequantizeLinear" not in fused


def test_convolutions_get_a_scale_for_each_channel_in_int8() -> None:
    before = mixed()
    plan = plan_of(before, "int8-weights")
    quantized = {name for name, layer in plan.layers.items() if not layer.left}
    assert quantized == {"stem", "wide", "narrow", "side", "last", "scores"}
    after = rewritten(before, plan)
    readers = {
        use.node.op_type: node.inputs[1].shape.numpy()  # type: ignore[union-attr]
        for node in after.graph
        if node.op_type == "DequantizeLinear"
        for use in node.outputs[0].uses()
    }
    assert readers == {"Conv": (32,)}
    image = {"image": floats(4, 3, 16, 16, seed=7)}
    assert sqnr_db(open_cpu(before)(image), open_cpu(after)(image)) > 35


def test_convolutions_stay_in_float_in_int4() -> None:
    plan = plan_of(mixed())
    left = {layer.left for layer in plan.layers.values() if layer.op == "Conv"}
    assert left == {"the backend has no convolution with 4-bit weights"}
    assert [name for name, layer in plan.layers.items() if not layer.left] == ["scores"]
    without = model(
        "y = Conv (x, w)", "(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)", w=(4, 3, 3, 3)
    )
    with pytest.raises(QConvertError, match="nothing to quantize") as raised:
        plan_of(without)
    assert raised.value.details == ("Conv: the backend has no convolution with 4-bit weights",)


REASONS: dict[str, tuple[str, str, dict[str, tuple[int, ...]], str]] = {
    "attention": ("y = MatMul (x, x)", "(float[N, 80, 80] x)", {}, "two activations"),
    "few inputs": ("y = MatMul (x, w)", "(float[N, 8] x)", {"w": (8, 64)}, "too few"),
    "a large group": ("y = MatMul (x, w)", "(float[N, 24] x)", {"w": (24, 64)}, "fewer than"),
    "a stack of weights": (
        "y = MatMul (x, w)", "(float[2, 4, 64] x)", {"w": (2, 64, 8)}, "not one matrix",
    ),
    "a transposed input": (
        "y = Gemm <transA: int = 1> (x, w)", "(float[64, N] x)", {"w": (64, 8)}, "transposes",
    ),
    "a shared weight": (
        "h = MatMul (x, w) y = MatMul (h, w)", "(float[N, 64] x)", {"w": (64, 64)},
        "other readers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_weight_that_stays_in_float_has_a_reason(name: str) -> None:
    body, inputs, shapes, reason = REASONS[name]
    more = "z = MatMul (p, q)"  # so that there is something to quantize
    before = model(
        f"{body} {more}", f"({inputs[1:-1]}, float[N, 64] p) => (float y, float z)",
        **shapes, q=(64, 8),
    )  # fmt: skip
    layers = plan_of(before).layers
    assert reason in layers["y"].left
    assert not layers["z"].left


def test_tensorrt_takes_whole_groups_without_zero_points() -> None:
    before = model("y = MatMul (x, w) z = MatMul (x, v)", f"{ROWS} => (float y, float z)",
                   w=(80, 48), v=(80, 16))  # fmt: skip
    with pytest.raises(QConvertError) as raised:
        plan_of(before, backend="tensorrt")
    assert raised.value.details == ("MatMul: its 80 inputs do not fill groups of 32",)
    plan = plan_of(before, backend="tensorrt", group="channel")
    after = rewritten(before, plan)
    dtypes = {
        node.inputs[0].dtype  # type: ignore[union-attr]
        for node in after.graph
        if node.op_type == "DequantizeLinear"
    }
    assert dtypes == {ir.DataType.INT4}
    assert all(len(node.inputs) == 2 for node in after.graph if node.op_type != "MatMul")


def test_scales_in_half_precision_are_exact() -> None:
    before = model("y = MatMul (x, w)", "(float[N, 64] x) => (float[N, 48] y)", w=(64, 48))
    scheme = scheme_for(QuantizeConfig(), backends.requirements("tensorrt"), "int4-weights")
    for node in before.graph:
        node.name = "y"
    plan = make_plan(before, scheme, {}, QuantizeOptions("in float", rest="fp16"), "int4-weights")
    after = rewritten(before, plan)
    half = convert_to_half(after, "fp16", {}).model
    onnx_io.require_valid(half)
    scales = [
        graph.initializers["w_scale"].const_value.numpy()  # type: ignore[union-attr]
        for graph in (after.graph, half.graph)
    ]
    assert [array.dtype for array in scales] == [np.float32, np.float16]
    np.testing.assert_array_equal(scales[0], scales[1].astype(np.float32))
    x = {"x": floats(4, 64, seed=2)}
    assert sqnr_db(open_cpu(after)(x), open_cpu(half)(x)) > 40


OLD = """
<ir_version: 8, opset_import: ["": 13]>
net (float[N, 64] x) => (float[N, 8] y) { y = MatMul (x, w) }
"""


def test_old_opset_is_upgraded() -> None:
    before = from_text(OLD, w=floats(64, 8))
    after = rewritten(before, plan_of(before, backend="tensorrt"))
    assert (after.opset_imports[""], after.ir_version) == (21, 10)
    assert before.opset_imports[""] == 13


def test_opset_that_cannot_be_upgraded_is_refused() -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 5]>\n'
        "net (float[2, 3] x) => (float[2, 3] y) { y = Cast <to: int = 1> (x) }"
    )
    with pytest.raises(QConvertError, match=r"need opset 21, and .* `Cast` beyond opset 5"):
        prepare_opset(ir.from_onnx_text(text))


def test_group_larger_than_every_weight_is_refused() -> None:
    before = model("y = MatMul (x, w)", f"{ROWS} => (float y)", w=(80, 48))
    for node in before.graph:
        node.name = "y"
    layers = plan_of(before).layers
    require_groups(layers, 32)
    too_large = {
        "y": layers["y"].__class__("MatMul", left="its 80 inputs are fewer than the group of 128")
    }
    with pytest.raises(UsageError, match="`--group 128` is larger than every weight") as raised:
        require_groups(too_large, 128)
    assert "none has more than 80 inputs" in str(raised.value)
