"""Feature maps lie alike in every graph of a network, whatever stands around a tensor there."""

import pytest

from qconvert.graph.simplify import infer_shapes
from qconvert.measure import feature_maps
from tests.models import floats, from_text

HEAD = (
    '<ir_version: 10, opset_import: ["": 20]>\nnet (float[N, 4, 8, 6] x) => (float[N, 4, 8, 6] y)'
)
# A product has its channels last, which its neighbour here takes for its own.
PLAIN = "{ t = Relu (x) s = Softmax (t) y = Neg (s) }"
OTHER = "{ t = Relu (x) s = Softmax (t) m = MatMul (t, w) y = Add (s, m) }"


def test_the_channels_are_where_the_float_model_has_them() -> None:
    reference, _ = infer_shapes(from_text(f"{HEAD} {PLAIN}"))
    other, _ = infer_shapes(from_text(f"{HEAD} {OTHER}", w=floats(6, 6)))
    scene = feature_maps.collect_maps(reference, {"int8": other}, {"x": floats(1, 4, 8, 6)})
    shapes = {name: maps.shape for name, maps in scene.exact.items()}
    assert {name: maps.shape for name, maps in scene.others["int8"].items()} == shapes
    assert shapes["t"] == (4, 8, 6)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_network_without_maps_has_no_pictures(rank: int) -> None:
    shape = ", ".join(["N", "5", "7"][:rank])
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ t = Relu (x) y = Neg (t) }}"
    model, _ = infer_shapes(from_text(HEAD.partition("net")[0] + text))
    feeds = {"x": floats(*(1, 5, 7)[:rank])}
    assert not feature_maps.collect_maps(model, {"fp16": model}, feeds).exact
