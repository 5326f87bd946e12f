"""Numbers that do not fit a grid or the type of its steps leave their layer in float."""

import pytest

from qconvert.core.scales import Range
from qconvert.quantize.placement import keep_representable
from qconvert.quantize.plan import RestPrecision
from tests.quantize.quantized_models import layers, model, scheme

X = "(float[N, 16, 8, 8] x) => (float[] y)"


def left(backend: str, rest: RestPrecision, **ranges: Range) -> dict[str, str]:
    body = "c = Conv (x, w) p = GlobalAveragePool (c) y = Conv (p, v)"
    before = model(body, X, w=(16, 16, 3, 3), v=(16, 16, 1, 1))
    usual = {name: Range(-1.0, 1.0) for name in "xcpy"}
    placed = keep_representable(
        before.graph, layers(before, backend), usual | ranges, scheme(backend), rest
    )
    return {name: layer.left for name, layer in placed.items() if layer.left}


@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
def test_ordinary_ranges_are_representable(rest: RestPrecision) -> None:
    assert left("tensorrt", rest) == {}


def test_range_beyond_fp16_scales_leaves_the_layer_in_float() -> None:
    wide = left("tensorrt", "fp16", x=Range(-1e7, 1e7))
    assert wide == {"c": "the range of `x` is too wide for a scale in fp16"}
    assert left("tensorrt", "bf16", x=Range(-1e7, 1e7)) == {}


def test_range_below_fp16_scales_leaves_the_layer_in_float() -> None:
    fine = left("tensorrt", "fp16", x=Range(-1e-5, 1e-5))
    assert fine == {"c": "the values of `x` are too small for a scale in fp16"}
    assert left("tensorrt", "fp32", x=Range(-1e-5, 1e-5)) == {}
    assert left("tensorrt", "fp16", x=Range(0.0, 0.0)) == {}


def test_pool_with_too_different_scales_stays_in_float() -> None:
    reasons = left("cpu", "fp32", p=Range(-1e-3, 1e-3))
    assert reasons == {
        "p": "the scales of its input and output differ too much for one integer kernel"
    }
