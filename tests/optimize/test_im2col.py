"""A layer as a product of rows and columns answers what ONNX Runtime answers at those places."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.optimize import im2col
from tests.models import floats
from tests.quantize.quantized_models import model

CONVOLUTIONS = {
    "plain": ("", (6, 4, 3, 3)),
    "strides and uneven pads": ("strides = [2, 1], pads = [1, 0, 2, 3]", (6, 4, 3, 3)),
    "dilations": ("dilations = [2, 3], pads = [2, 2, 2, 2]", (6, 4, 3, 2)),
    "groups": ("group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3)),
    "depthwise": ("group = 4, strides = [2, 2], pads = [1, 1, 1, 1]", (4, 1, 3, 3)),
    "same at the upper side": ('auto_pad = "SAME_UPPER", strides = [2, 2]', (6, 4, 3, 4)),
    "same at the lower side": ('auto_pad = "SAME_LOWER", strides = [2, 2]', (6, 4, 4, 3)),
    "valid": ('auto_pad = "VALID"', (6, 4, 3, 3)),
}
TRANSPOSED = {
    "plain": ("", (4, 6, 3, 3)),
    "strides and pads": ("strides = [2, 3], pads = [1, 0, 1, 1]", (4, 6, 3, 4)),
    "what is added to the output": (
        "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        (4, 6, 3, 3),
    ),
    "groups and dilations": ("group = 2, dilations = [2, 1]", (4, 3, 3, 3)),
}


def compared(net: ir.Model, image: NDArray[np.float32], few: int = 7) -> None:
    """Compare every row of a layer with what the runtime answers there."""
    node = net.graph[0]
    answer = open_cpu(net)({"x": image})["y"]
    stored = net.graph.initializers["w"].const_value
    assert stored is not None
    weight = stored.numpy().astype(np.float32)
    there = im2col.count_rows(node, answer)
    pick = np.random.default_rng(3)
    places = np.stack([pick.permutation(there)[: min(few, there)] for _ in image])
    columns = im2col.weight_matrix(node, weight).astype(np.float32)
    found = columns @ im2col.gather_inputs(node, image, answer, places).transpose(0, 2, 1)
    np.testing.assert_allclose(found, im2col.gather_outputs(node, answer, places), atol=2e-5)
    np.testing.assert_array_equal(im2col.restore_weight(node, columns, weight.shape), weight)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_a_product_at_each_place(name: str) -> None:
    how, shape = CONVOLUTIONS[name]
    net = model(
        f"y = Conv <{how}> (x, w)" if how else "y = Conv (x, w)",
        "(float[n, 4, 9, 8] x) => (float[n, a, b, c] y)",
        w=shape,
    )
    compared(net, floats(3, 4, 9, 8, seed=5))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_so_is_a_transposed_convolution(name: str) -> None:
    how, shape = TRANSPOSED[name]
    net = model(
        f"y = ConvTranspose <{how}> (x, w)" if how else "y = ConvTranspose (x, w)",
        "(float[n, 4, 5, 6] x) => (float[n, a, b, c] y)",
        w=shape,
    )
    compared(net, floats(2, 4, 5, 6, seed=5))


def test_so_is_a_convolution_over_one_axis_or_three() -> None:
    line = model(
        "y = Conv <pads = [1, 1]> (x, w)", "(float[n, 2, 9] x) => (float[n, a, b] y)", w=(3, 2, 3)
    )
    compared(line, floats(2, 2, 9))
    body = model(
        "y = Conv (x, w)",
        "(float[n, 2, 5, 4, 3] x) => (float[n, a, b, c, d] y)",
        w=(3, 2, 2, 3, 1),
    )
    compared(body, floats(2, 2, 5, 4, 3))


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_has_a_row_for_each_image(turned: int) -> None:
    shape = (5, 6) if turned else (6, 5)
    text = f"y = Gemm <transB = {turned}> (x, w)"
    compared(model(text, "(float[n, 6] x) => (float[n, 5] y)", w=shape), floats(4, 6))


def test_a_matrix_product_has_a_row_for_each_token() -> None:
    net = model("y = MatMul (x, w)", "(float[n, 9, 6] x) => (float[n, 9, 5] y)", w=(6, 5))
    compared(net, floats(3, 9, 6))


def test_groups_of_a_transposed_convolution_have_their_steps_in_common() -> None:
    net = model(
        "y = ConvTranspose <group = 2> (x, w)",
        "(float[n, 4, 5, 6] x) => (float[n, a, b, c] y)",
        w=(4, 3, 2, 2),
    )
    steps = np.array([1.0, 2.0, 3.0], np.float32)
    assert im2col.per_output(net.graph[0], steps, 3).tolist() == [[1, 2, 3], [1, 2, 3]]
