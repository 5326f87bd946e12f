"""Depthwise convolutions are padded to full vectors of channels, and no integer changes."""

import platform
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends import cpu, ort
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core import onnx_io
from qconvert.graph.patterns import constant_array
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.saturation import is_pair_safe
from tests.backends.graphs import ignore_progress
from tests.models import floats
from tests.quantize.quantized_models import model, planned

SHAPES = {
    "expand": (40, 16, 1, 1), "bias": (40,), "filters": (40, 1, 3, 3), "project": (16, 40, 1, 1),
    "squeeze": (8, 40, 1, 1), "excite": (40, 8, 1, 1), "wide": (16, 40, 3, 3),
    "both": (16, 80, 1, 1), "groups": (40, 10, 1, 1),
    "expand24": (24, 16, 1, 1), "filters24": (24, 1, 3, 3), "project24": (16, 24, 1, 1),
    "expand45": (45, 16, 1, 1), "filters45": (45, 1, 3, 3), "project45": (16, 45, 1, 1),
}  # fmt: skip
EXPANDED = "e = Conv (x, expand, bias)"
DEPTHWISE = "d = Conv <pads: ints = [1, 1, 1, 1], group: int = 40> (e, filters, bias)"
FILTERED = "d = Conv <pads: ints = [1, 1, 1, 1], group: int"
SAME = "(float[batch, 16, 9, 9] x) => (float[batch, 16, 9, 9] y)"
PADDED = {
    "no bias": f"e = Conv (x, expand) {DEPTHWISE} y = Conv (d, project)",
    "activations": f"c = Conv (x, expand, bias) e = HardSwish (c) {DEPTHWISE} s = Sigmoid (d) "
    "a = Mul (d, s) y = Conv (a, project)",
    "squeeze and excitation": f"{EXPANDED} {DEPTHWISE} "
    "m = GlobalAveragePool (d) q = Conv (m, squeeze) g = Conv (q, excite) "
    "h = Sigmoid (g) a = Mul (d, h) y = Conv (a, project)",
    "a sum": f"{EXPANDED} {DEPTHWISE} s = Add (d, e) y = Conv (s, project)",
    "a reader with a wide kernel": f"{EXPANDED} {DEPTHWISE} "
    "y = Conv <pads: ints = [1, 1, 1, 1]> (d, wide)",
}
UNPADDED = {
    "channels of the input": (
        "(float[batch, 40, 9, 9] e) => (float[batch, 16, 9, 9] y)",
        f"{DEPTHWISE} y = Conv (d, project)",
    ),
    "channels of the output": (
        "(float[batch, 16, 9, 9] x) => (float[batch, 40, 9, 9] d)", f"{EXPANDED} {DEPTHWISE}"
    ),
    "a concatenation": (
        SAME, f"{EXPANDED} {DEPTHWISE} s = Concat <axis: int = 1> (d, e) y = Conv (s, both)"
    ),
    "groups of several channels": (
        SAME, f"{EXPANDED} d = Conv <group: int = 4> (e, groups) y = Conv (d, project)"
    ),
    "24 channels, which would be a third more": (
        SAME,
        f"e = Conv (x, expand24) {FILTERED} = 24> (e, filters24) y = Conv (d, project24)",
    ),
    "an odd number of channels": (
        SAME,
        f"e = Conv (x, expand45) {FILTERED} = 45> (e, filters45) y = Conv (d, project45)",
    ),
}  # fmt: skip


def quantized(signature: str, body: str) -> ir.Model:
    names = set(re.findall(r"\w+", body))
    net = model(body, signature, **{name: SHAPES[name] for name in names & SHAPES.keys()})
    return apply_plan(net, planned(net, "cpu"))


def build(graph: ir.Model, folder: Path) -> Engine:
    onnx_io.save(graph, folder / "graph.onnx")
    (folder / "engine").mkdir()
    spec = BuildSpec("int8", Profile(), threads=1)
    return cpu.build(folder / "graph.onnx", spec, folder / "engine", ignore_progress)


def depthwise_channels(engine: Engine) -> list[int]:
    graph = onnx_io.load(engine.folder / engine.files[0]).graph
    groups = [
        node.attributes.get_int("group", 1) for node in graph if node.op_type == "QLinearConv"
    ]
    return [group for group in groups if group > 1]


def require_equal_answers(engine: Engine, graph: ir.Model) -> None:
    (spec,) = onnx_io.inputs(graph)
    feeds = {spec.name: floats(3, int(spec.shape[1]), 9, 9)}
    (expected,) = ort.open_cpu(graph)(feeds).values()
    (outputs,) = cpu.open(engine).run(feeds).values()
    np.testing.assert_array_equal(outputs, expected)
    assert np.unique(expected).size > 20


@pytest.mark.parametrize("case", PADDED)
def test_padded_engine_gives_the_same_answers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SiLU in float would round differently.
    monkeypatch.setattr("qconvert.backends.int8_class.has_avx512", lambda: False)
    graph = quantized(SAME, PADDED[case])
    engine = build(graph, tmp_path)
    assert depthwise_channels(engine) == [48]
    assert any("pads 1 depthwise convolution" in note for note in engine.notes)
    require_equal_answers(engine, graph)
    # The pairs of products that could saturate are the same ones.
    assert is_pair_safe(onnx_io.load(engine.folder / engine.files[0]))


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        engine = build(quantized(SAME, PADDED["squeeze and excitation"]), tmp_path / name)
        contents.append((engine.folder / engine.files[0]).read_bytes())
    assert contents[0] == contents[1]


def test_silu_of_padded_channels_is_computed_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qconvert.backends.int8_class.has_avx512", lambda: True)
    engine = build(quantized(SAME, PADDED["activations"]), tmp_path)
    assert depthwise_channels(engine) == [48]
    assert any("SiLU in float" in note for note in engine.notes)
    assert np.isfinite(cpu.open(engine).run({"x": floats(2, 16, 9, 9)})["y"]).all()


@pytest.mark.parametrize("case", UNPADDED)
def test_other_convolutions_keep_their_channels(case: str, tmp_path: Path) -> None:
    graph = quantized(*UNPADDED[case])
    engine = build(graph, tmp_path)
    assert not any("pads" in note for note in engine.notes)
    assert 48 not in depthwise_channels(engine)
    require_equal_answers(engine, graph)


def test_arm_has_other_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    engine = build(quantized(SAME, PADDED["a sum"]), tmp_path)
    assert not any("pads" in note for note in engine.notes)


def test_constants_that_nothing_reads_are_removed(tmp_path: Path) -> None:
    engine = build(quantized(SAME, PADDED["squeeze and excitation"]), tmp_path)
    graph = onnx_io.load(engine.folder / engine.files[0]).graph
    assert all(value.uses() for value in graph.initializers.values())
    weights = [constant_array(node.inputs[3]) for node in graph if node.op_type == "QLinearConv"]
    shapes = {weight.shape for weight in weights if weight is not None}
    assert shapes == {(48, 16, 1, 1), (48, 1, 3, 3), (8, 48, 1, 1), (48, 8, 1, 1), (16, 48, 1, 1)}
