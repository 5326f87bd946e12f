"""What a plan leaves in float is computed in float, also by ONNX Runtime's optimizer."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.graph.passes import infer_shapes
from qconvert.measure.output_error import sqnr_db
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import Selection
from tests.models import floats, from_text
from tests.quantize.quantized_models import planned

CHAIN = """
<ir_version: 10, opset_import: ["": 20]>
chain (float[N, 8, 16, 16] image) => (float[N, 8, 16, 16] y) {{
    first = Conv (image, w1, b1)
    {inner}
    y = Conv ({last}, w3, b3)
}}
"""
CONV = "mid = Conv <pads: ints = [1, 1, 1, 1], group: int = 8> (first, w2, b2)"
BODIES = {
    "alone": (CONV, "mid"),
    "relu": (f"{CONV} r = Relu (mid)", "r"),
    "transposed": ("mid = ConvTranspose <pads: ints = [1, 1, 1, 1], group: int = 8> "
                   "(first, w2, b2)", "mid"),
}  # fmt: skip


def chain(kind: str) -> ir.Model:
    """Return three convolutions; one filter of the middle one is large, and what it reads small."""
    inner, last = BODIES[kind]
    w1, w2 = floats(8, 8, 1, 1), floats(8, 1, 3, 3, seed=2)
    w1[0], w2[0] = w1[0] / 100, w2[0] * 100
    model = from_text(
        CHAIN.format(inner=inner, last=last),
        w1=w1, b1=np.zeros(8, np.float32), w2=w2, b2=floats(8, seed=3),
        w3=floats(8, 8, 1, 1, seed=4), b3=floats(8, seed=5),
    )  # fmt: skip
    model = infer_shapes(model)[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@pytest.mark.parametrize("kind", BODIES)
def test_float_layer_between_integers_keeps_its_weights(kind: str) -> None:
    model = chain(kind)
    exclude = () if kind == "transposed" else ("mid",)
    rewritten = apply_plan(model, planned(model, "cpu", Selection(exclude)))
    assert [node.op_type for node in rewritten.graph].count("LeakyRelu") == 1
    feeds = {"image": floats(4, 8, 16, 16, seed=9)}
    said = open_cpu(rewritten, keep_qdq=True)(feeds)
    ran = open_cpu(rewritten)(feeds)
    assert sqnr_db(said, ran) > 45


def test_ort_quantizes_float_weights_without_the_guard() -> None:
    model = chain("relu")
    plan = planned(model, "cpu", Selection(("mid",)))
    bare = apply_plan(model, replace(plan, integer_bias=False))
    feeds = {"image": floats(4, 8, 16, 16, seed=9)}
    assert sqnr_db(open_cpu(bare, keep_qdq=True)(feeds), open_cpu(bare)(feeds)) < 20


def test_fully_quantized_graph_has_no_guard() -> None:
    model = chain("relu")
    rewritten = apply_plan(model, planned(model, "cpu"))
    assert "LeakyRelu" not in [node.op_type for node in rewritten.graph]
