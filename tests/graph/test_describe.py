"""The description of a model: operators, parameters and multiplications."""

from qconvert.graph.describe import describe_model
from qconvert.graph.passes import infer_shapes
from tests import models
from tests.models import floats, from_text


def test_parameters_and_macs_count_one_image() -> None:
    info = describe_model(infer_shapes(models.tiny())[0])
    conv = next(operator for operator in info.operators if operator.op == "Conv")
    gemm = next(operator for operator in info.operators if operator.op == "Gemm")
    assert (conv.nodes, conv.parameters, conv.macs) == (1, 4 * 27 + 4, 8 * 8 * 4 * 27)
    assert (gemm.parameters, gemm.macs) == (25, 20)
    assert info.parameters == 112 + 25
    assert info.weight_bytes == 4 * 137
    assert [operator.op for operator in info.operators][:2] == ["Conv", "Gemm"]


def test_macs_of_grouped_and_transposed_convolutions_are_counted() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 4, 6, 6] x) => (float[N, 2, 9, 9] y) "
        "{ a = Conv <group: int = 4> (x, w) y = ConvTranspose <strides: ints = [2, 2]> (a, v) }"
    )
    model = from_text(text, w=floats(4, 1, 3, 3), v=floats(4, 2, 3, 3))
    info = describe_model(infer_shapes(model)[0])
    by_op = {operator.op: operator.macs for operator in info.operators}
    assert by_op == {"Conv": 4 * 4 * 4 * 9, "ConvTranspose": 4 * 4 * 4 * 2 * 9}


def test_shared_weight_counts_once_and_shapes_do_not_count() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 4] x) => (float[N, 4] y) "
        "{ a = MatMul (x, w) b = MatMul (a, w) s = Constant <value_ints: ints = [-1, 4]> () "
        "y = Reshape (b, s) }"
    )
    info = describe_model(infer_shapes(from_text(text, w=floats(4, 4)))[0])
    assert info.parameters == 16
    assert sum(operator.parameters for operator in info.operators) == 16


def test_unknown_shape_gives_unknown_macs() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 3, h, w] x) => (float[N, 4, h, w] y) "
        "{ y = Conv <pads: ints = [1, 1, 1, 1]> (x, k) }"
    )
    info = describe_model(infer_shapes(from_text(text, k=floats(4, 3, 3, 3)))[0])
    assert info.operators[0].macs is None


def test_fixed_batch_counts_as_one_image() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[4, 4] x) => (float[4, 6] y) { y = MatMul (x, w) }"
    )
    assert describe_model(from_text(text, w=floats(4, 6))).operators[0].macs == 4 * 6


def test_function_named_like_an_operator_is_described_by_its_domain() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20, "my": 1]>\n'
        "net (float[N, 4] x) => (float[N, 4] y) { y = my.MatMul (x) }\n"
        '<domain: "my", opset_import: ["": 20]>\n'
        "MatMul (a) => (b) { b = Add (a, a) }"
    )
    by_op = {operator.op: operator.macs for operator in describe_model(from_text(text)).operators}
    assert by_op == {"my::MatMul": 0, "Add": 0}
