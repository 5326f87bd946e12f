"""A layer as a matrix product gives the outputs of ONNX Runtime at those positions."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.optimize import im2col
from tests.models import floats
from tests.quantize.quantized_models import model

CONVOLUTIONS = {
    "default": ("", (6, 4, 3, 3)),
    "strides and uneven pads": ("strides = [2, 1], pads = [1, 0, 2, 3]", (6, 4, 3, 3)),
    "dilations": ("dilations = [2, 3], pads = [2, 2, 2, 2]", (6, 4, 3, 2)),
    "groups": ("group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3)),
    "depthwise": ("group = 4, strides = [2, 2], pads = [1, 1, 1, 1]", (4, 1, 3, 3)),
    "same at the upper side": ('auto_pad = "SAME_UPPER", strides = [2, 2]', (6, 4, 3, 4)),
    "same at the lower side": ('auto_pad = "SAME_LOWER", strides = [2, 2]', (6, 4, 4, 3)),
    "valid": ('auto_pad = "VALID"', (6, 4, 3, 3)),
}
TRANSPOSED = {
    "default": ("", (4, 6, 3, 3)),
    "strides and pads": ("strides = [2, 3], pads = [1, 0, 1, 1]", (4, 6, 3, 4)),
    "output padding": (
        "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        (4, 6, 3, 3),
    ),
    "groups and dilations": ("group = 2, dilations = [2, 1]", (4, 3, 3, 3)),
}


def assert_same_outputs(net: ir.Model, image: NDArray[np.float32]) -> None:
    """Compare the product of a layer with the runtime's outputs, at a few positions."""
    node = net.graph[0]
    output = open_cpu(net)({"x": image})["y"]
    tensor = net.graph.initializers["w"].const_value
    assert tensor is not None
    weight = tensor.numpy().astype(np.float32)
    rows = im2col.count_rows(node, output)
    generator = np.random.default_rng(3)
    positions = np.stack([generator.permutation(rows)[: min(7, rows)] for _ in image])
    matrix = im2col.weight_matrix(node, weight).astype(np.float32)
    product = matrix @ im2col.gather_inputs(node, image, output, positions).transpose(0, 2, 1)
    np.testing.assert_allclose(product, im2col.gather_outputs(node, output, positions), atol=2e-5)
    np.testing.assert_array_equal(im2col.restore_weight(node, matrix, weight.shape), weight)


@pytest.mark.parametrize(
    ("op", "name"),
    [*(("Conv", name) for name in CONVOLUTIONS), *(("ConvTranspose", name) for name in TRANSPOSED)],
)
def test_convolution_equals_matrix_product(op: str, name: str) -> None:
    attributes, shape = (CONVOLUTIONS if op == "Conv" else TRANSPOSED)[name]
    net = model(
        f"y = {op} <{attributes}> (x, w)" if attributes else f"y = {op} (x, w)",
        "(float[n, 4, 9, 8] x) => (float[n, a, b, c] y)",
        w=shape,
    )
    assert_same_outputs(net, floats(3, 4, 9, 8, seed=5))


def test_convolution_over_one_or_three_axes_equals_matrix_product() -> None:
    one_axis = model(
        "y = Conv <pads = [1, 1]> (x, w)", "(float[n, 2, 9] x) => (float[n, a, b] y)", w=(3, 2, 3)
    )
    assert_same_outputs(one_axis, floats(2, 2, 9))
    three_axes = model(
        "y = Conv (x, w)", "(float[n, 2, 5, 4, 3] x) => (float[n, a, b, c, d] y)", w=(3, 2, 2, 3, 1)
    )
    assert_same_outputs(three_axes, floats(2, 2, 5, 4, 3))


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_has_a_row_for_each_image(transposed: int) -> None:
    shape = (5, 6) if transposed else (6, 5)
    text = f"y = Gemm <transB = {transposed}> (x, w)"
    assert_same_outputs(model(text, "(float[n, 6] x) => (float[n, 5] y)", w=shape), floats(4, 6))


def test_matmul_has_a_row_for_each_token() -> None:
    net = model("y = MatMul (x, w)", "(float[n, 9, 6] x) => (float[n, 9, 5] y)", w=(6, 5))
    assert_same_outputs(net, floats(3, 9, 6))


def test_groups_of_a_transposed_convolution_share_their_steps() -> None:
    net = model(
        "y = ConvTranspose <group = 2> (x, w)",
        "(float[n, 4, 5, 6] x) => (float[n, a, b, c] y)",
        w=(4, 3, 2, 2),
    )
    steps = np.array([1.0, 2.0, 3.0], np.float32)
    assert im2col.per_output(net.graph[0], steps, 3).tolist() == [[1, 2, 3], [1, 2, 3]]
