"""Dynamic INT8 gives the same answers on every CPU if pairs of its weights are limited."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core.config import QuantizeConfig
from qconvert.graph.patterns import constant_array, set_constant
from tests.any_cpu import environment
from tests.any_cpu.conftest import RunAs
from tests.any_cpu.environment import File
from tests.any_cpu.test_networks import ROUNDING_DB, SATURATED_DB, agreement_db
from tests.models import floats
from tests.quantize.quantized_models import model
from tests.quantize.test_dynamic import rewritten

pytestmark = pytest.mark.timeout(900)  # on a busy host QEMU is slow

SQUARE = (64, 64)
NETWORKS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "one product": ("y = MatMul (x, w)", {"w": SQUARE}),
    "products that share their input": (
        "h = MatMul (x, w) g = MatMul (x, v) y = Concat <axis: int = 2> (h, g)",
        {"w": SQUARE, "v": SQUARE},
    ),
    "LSTM": (
        "y, h = LSTM <hidden_size: int = 32> (x, w, r)",
        {"w": (1, 128, 64), "r": (1, 128, 32)},
    ),
}


def network(name: str) -> ir.Model:
    """Return a network of weights that differ little, so that all sums of pairs are large."""
    body, shapes = NETWORKS[name]
    before = model(body, "(float[T, 2, 64] x) => (float[N] y)", **shapes)
    for key in shapes:
        value = before.graph.initializers[key]
        array = constant_array(value)
        assert array is not None
        set_constant(value, near_one(array) / np.float32(64))
    return before


def near_one(array: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return numbers up to 1, most of them above 0.7."""
    return np.exp(-np.abs(array.astype(np.float32)) / 8).astype(np.float32)


@pytest.mark.parametrize("portable", [True, False])
def test_dynamic_int8_is_exact_where_pairs_are_limited(
    cpu: str, run_as: RunAs, portable: bool
) -> None:
    graphs = {
        name: rewritten(network(name), QuantizeConfig(portable=portable)) for name in NETWORKS
    }
    feeds = {"x": near_one(floats(8, 2, 64, seed=3))}
    files = {name: File(ir.to_proto(graph), feeds) for name, graph in graphs.items()}
    outputs = run_as(cpu, files)
    for name, file in files.items():
        (output,), (expected,) = outputs[name].values(), open_cpu(graphs[name])(file.feeds).values()
        agreement = agreement_db(output, expected)
        if environment.is_saturating(cpu) and not portable:
            assert agreement < SATURATED_DB, name
        else:
            assert agreement > ROUNDING_DB, name
