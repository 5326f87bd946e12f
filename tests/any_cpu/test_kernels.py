"""The models of kernels, and the proof made with them, agree with ONNX Runtime on every CPU."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qconvert.quantize.saturation import find_saturation
from tests.any_cpu import environment, kernels, layers, table
from tests.any_cpu.conftest import RunAs
from tests.any_cpu.environment import File

pytestmark = pytest.mark.timeout(900)  # on a busy host QEMU is slow

Kernel = Callable[[kernels.Bytes, NDArray[np.int8]], NDArray[np.int32]]
Kind = type[np.uint8] | type[np.int8]


def test_layers_saturate_where_pairs_are_added_and_nowhere_else(cpu: str, run_as: RunAs) -> None:
    outputs = run_as(cpu, layers.files())
    saturates = environment.is_saturating(cpu)
    for layer in layers.LAYERS:
        (output,) = outputs[layer.name].values()
        expected = layer.neighbours() if saturates else set()
        assert layer.saturated(output) == expected, layer.name


@pytest.mark.parametrize("layer", layers.LAYERS, ids=lambda layer: layer.name)
def test_proof_finds_the_channels_that_saturate(layer: layers.Layer) -> None:
    found = find_saturation(ir.from_proto(layers.model(layer)))
    weight_copies = layer.group if layer.adds_pairs else 1
    expected = [len(layer.neighbours()) * weight_copies] if layer.adds_pairs else []
    assert [sums.saturating_channels for sums in found] == expected
    assert [sums.largest for sums in found] == [layers.EXACT] * len(found)


def test_page_shows_what_was_measured() -> None:
    rows = table.PAGE.read_text(encoding="utf-8").split(table.BEGIN)[1].split(table.END)[0]
    for layer in layers.LAYERS:
        cells = ["pairs" if layer.neighbours() else "exact", "exact", "exact", "exact"]
        assert f"| {layer.name} | {' | '.join(cells)} |\n" in rows


@pytest.mark.parametrize(("weight", "is_exact"), [(-127, True), (-128, False)])
def test_arm_needs_weights_above_the_smallest_byte(
    arm: str, weight: int, is_exact: bool, run_as: RunAs
) -> None:
    depthwise = np.full((16, 1, 3, 3), weight, np.int8)
    file = File(_quantized_convolution(depthwise), {"x": np.full((1, 16, 5, 5), -128, np.int8)})
    ((_, output),) = run_as(arm, {"depthwise": file})["depthwise"].items()
    expected = -128 * weight * 9 // 2048
    assert (np.abs(output.astype(np.int32) - expected) <= 1).all() == is_exact


def _quantized_convolution(weight: NDArray[np.int8]) -> ModelProto:
    """Return a depthwise convolution of signed bytes; its sums are divided by 2048."""
    arrays = {"one": np.float32(1), "zero": np.int8(0), "scale": np.float32(2048), "w": weight}
    inputs = ["x", "one", "zero", "w", "one", "zero", "scale", "zero"]
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", inputs, ["y"], group=len(weight))],
        "depthwise",
        [helper.make_tensor_value_info("x", TensorProto.INT8, [1, len(weight), 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# Signed activations have a kernel of their own on ARM; on x86 one that is exact and slow.
KERNELS: dict[str, tuple[Kind, Kernel]] = {
    "Haswell": (np.uint8, kernels.avx2),
    "Nehalem": (np.uint8, kernels.exact),
    "cortex-a72": (np.int8, kernels.neon),
    "neoverse-n1": (np.int8, kernels.exact),
}


def test_models_of_kernels_are_exact_on_random_bytes(cpu: str, run_as: RunAs) -> None:
    kind, kernel = KERNELS[cpu]
    random, limits = np.random.default_rng(0), np.iinfo(kind)
    files, expected = {}, {}
    for depth in (1, 2, 15, 16, 37, 300):
        weights = random.choice(np.array([-128, -127, -90, 0, 3, 64, 127], np.int8), (19, depth))
        # Extreme activations saturate and wrap around more often.
        values = np.array([limits.min, limits.min, 0, limits.max, limits.max])
        activations = random.choice(values.astype(kind), (5, depth))
        files[str(depth)] = File(_product(weights, kind), {"a": activations})
        expected[str(depth)] = kernel(activations, weights)
    outputs = run_as(cpu, files)
    for name, sums in expected.items():
        np.testing.assert_array_equal(outputs[name]["y"], sums, name)


def _product(weights: NDArray[np.int8], kind: Kind) -> ModelProto:
    """Return an integer matrix product, which shows the sums of a kernel as they are."""
    dtype = TensorProto.INT8 if kind is np.int8 else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", dtype, ["rows", weights.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(np.ascontiguousarray(weights.T), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
