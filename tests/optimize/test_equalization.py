"""Equalization brings channels of different sizes closer, within the limits of a Clip."""

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.graph.passes import infer_shapes
from qconvert.optimize.equalization import HEADROOM, choose_factors
from tests.calibrate.activations import summary_of_channels
from tests.models import floats, from_text
from tests.quantize.quantized_models import HEAD

SHAPES = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 1, 1)}


def net(activation: str) -> ir.Model:
    weights = {name: floats(*shape) for name, shape in SHAPES.items()}
    if "Clip" in activation:
        weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    body = f"c = Conv (x, w1, b1) a = {activation} y = Conv (a, w2)"
    text = f"{HEAD}net (float[N, 3, 8, 8] x) => (float[] y) {{ {body} }}"
    return infer_shapes(from_text(text, **weights))[0]


def factors_of(model: ir.Model, largest: NDArray[np.float32]) -> dict[str, tuple[float, ...]]:
    """Return the factors for a tensor whose channels reach these values in calibration."""
    values = np.linspace(0, 1, 64, dtype=np.float32) * largest[:, np.newaxis]
    summaries = {"a": summary_of_channels(np.stack([values, values]))}
    return choose_factors(model, summaries)


@pytest.mark.parametrize("size", [1.0, 0.0], ids=["equal", "always zero"])
def test_channels_of_one_size_get_no_factors(size: float) -> None:
    assert factors_of(net("Relu (c)"), np.full(6, size, np.float32)) == {}


def test_channels_of_different_sizes_come_closer() -> None:
    largest = np.array([100.0, 1.0, 0.1, 10.0, 0.5, 0.0], np.float32)
    equalized = largest[:5] / np.array(factors_of(net("Relu (c)"), largest)["a"])[:5]
    assert equalized.max() / equalized.min() < 0.1 * 1000


def test_channels_below_a_ceiling_grow_no_further_than_the_headroom() -> None:
    largest = np.array([6.0, 2.0, 0.5, 0.01, 4.0, 0.0], np.float32)
    factors = np.array(factors_of(net("Clip (c, zero, six)"), largest)["a"])
    equalized = largest / factors
    assert (equalized <= np.maximum(largest, 6 / HEADROOM) * 1.001).all()
    assert factors[0] == factors[4] == 1.0  # they are too close to the ceiling already
    assert equalized[2] > largest[2]
