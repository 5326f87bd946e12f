"""SiLU between integers is computed in float where that is faster, with the same answers."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends import cpu, int8_class, ort, ort_coverage
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.backends.float_silu import compute_silu_in_float
from qconvert.core.tensors import Tensors
from tests.backends.graphs import ignore_progress, images, make_graph, write_graph
from tests.models import from_text, ops

CONSTANTS = {
    **{
        name: np.float32(number) for name, number in {"xs": 0.05, "gs": 1 / 255, "ys": 0.04}.items()
    },
    **{name: np.uint8(number) for name, number in {"xz": 120, "gz": 0, "yz": 7}.items()},
    "copy": np.float32(0.05),
}
SIGMOID = "g = com.microsoft.QLinearSigmoid (x, xs, xz, gs, gz)"


def product(x: str = "x, xs, xz", gate: str = "g, gs, gz", output: str = "y") -> str:
    return f"{output} = com.microsoft.QLinearMul ({x}, {gate}, ys, yz)"


SILU = {
    "the gate is second": f"{SIGMOID} {product()}",
    "the gate is first": f"{SIGMOID} {product('g, gs, gz', 'x, xs, xz')}",
    "a scale has a copy": f"{SIGMOID} {product('x, copy, xz')}",
}
OTHERS = {
    "the sigmoid of another tensor": f"{SIGMOID.replace('(x', '(v')} {product()}",
    "a sigmoid with two readers": f"{SIGMOID} {product()} {product(x='v, xs, xz', output='z')}",
    "the gate has another scale": f"{SIGMOID} {product(gate='g, xs, gz')}",
    "the tensor has another scale": f"{SIGMOID} {product('x, gs, xz')}",
    "a scale that is computed": f"t = Identity (s) {SIGMOID} {product('x, t, xz')}",
    "a square": product(gate="x, xs, xz"),
    "a Sigmoid of floats": f"f = Sigmoid (s) g = QuantizeLinear (f, gs, gz) {product()}",
}


def parsed(body: str, shape: str = "2, 600") -> ir.Model:
    """Return a graph of ONNX Runtime's operators."""
    names = set(re.findall(r"\w+", body))
    head = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>'
    inputs = f"uint8[{shape}] x, uint8[{shape}] v, float s"
    return from_text(
        f"{head} net ({inputs}) => (uint8[{shape}] y) {{ {body} }}",
        **{name: np.asarray(array) for name, array in CONSTANTS.items() if name in names},
    )


def feeds() -> Tensors:
    integers = np.random.default_rng(0).integers(0, 256, (2, 2, 600)).astype(np.uint8)
    return {"x": integers[0], "v": integers[1], "s": np.asarray(np.float32(0.05))}


@pytest.mark.parametrize("case", SILU)
def test_silu_has_one_rounding_less_than_in_integers(case: str) -> None:
    before, after = parsed(SILU[case]), parsed(SILU[case])
    assert compute_silu_in_float(after.graph, 1) == 1
    assert ops(after) == ["DequantizeLinear", "QuickGelu", "QuantizeLinear"]
    x = 0.05 * (feeds()["x"].astype(np.float64) - 120)
    exact = np.clip(np.rint(x / (1 + np.exp(-x)) / 0.04) + 7, 0, 255)
    errors = [np.abs(ort.open_cpu(model)(feeds())["y"] - exact) for model in (before, after)]
    assert errors[1].max() <= errors[0].max() == 1
    assert errors[1].mean() < 0.01 < errors[0].mean()


@pytest.mark.parametrize("case", OTHERS)
def test_other_products_stay_in_integers(case: str) -> None:
    model = parsed(OTHERS[case])
    before = ops(model)
    assert compute_silu_in_float(model.graph, 1) == 0
    assert ops(model) == before


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("2, 600", 1),
        ("1, 900", 0),  # too small
        ("2, 3, 1000, 1000", 0),  # too large
        ("batch, 900000", 1),
        ("batch, 1200000", 0),
        ("batch, channels", 0),
    ],
)
def test_size_at_the_best_batch_decides(shape: str, expected: int) -> None:
    model = parsed(SILU["the gate is second"], shape)
    assert compute_silu_in_float(model.graph, 4) == expected


def build(avx512: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Build the INT8 engine of a network with a SiLU."""
    monkeypatch.setattr(int8_class, "has_avx512", lambda: avx512)
    graph = write_graph(folder, "cpu", "int8")
    (folder / "engine").mkdir()
    spec = BuildSpec("int8", Profile(), threads=1)
    return cpu.build(graph, spec, folder / "engine", ignore_progress)


def test_engine_for_avx512_computes_silu_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(True, tmp_path, monkeypatch)
    assert engine.files == (cpu.OPTIMIZED,)
    assert engine.made_with["silu"] == "in float at batch 1"
    assert any("SiLU in float" in note and "1 node" in note for note in engine.notes)
    operators = count_operators(engine)
    assert (operators["QuickGelu"], operators["QLinearSigmoid"]) == (1, 0)
    (expected,) = ort.open_cpu(make_graph("cpu", "int8"))(images()).values()
    (outputs,) = cpu.open(engine).run(images()).values()
    error = np.mean((outputs - expected) ** 2) / np.mean(expected**2)
    assert error < 0.001  # 30 dB: integers that differ by one


def test_other_engines_compute_the_integers_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(False, tmp_path, monkeypatch)
    assert engine.made_with["silu"] == "in integers"
    assert count_operators(engine)["QLinearSigmoid"] == 1
    (expected,) = ort.open_cpu(make_graph("cpu", "int8"))(images()).values()
    (outputs,) = cpu.open(engine).run(images()).values()
    np.testing.assert_array_equal(outputs, expected)


def count_operators(engine: Engine) -> Counter[str]:
    graph = ort_coverage.optimized_graph(engine.folder / engine.files[0], cpu.load_spec(engine))
    return Counter(node.op_type for node in graph)


def test_cache_does_not_mix_engines_of_different_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for avx512 in (True, False):
        monkeypatch.setattr(int8_class, "has_avx512", lambda avx512=avx512: avx512)
        keys.append([cpu.cache_key(BuildSpec(name, Profile())) for name in ("fp32", "int8")])
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]
    monkeypatch.setattr(int8_class, "has_avx512", lambda: True)
    other_batch = cpu.cache_key(BuildSpec("int8", Profile(1, 8, 8)))
    assert other_batch not in (keys[0][1], keys[1][1])
