"""Builds of graphs with state, integer inputs and masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from tests.models import floats, from_text
from tests.runs import QUICK

STATEFUL = """
<ir_version: 10, opset_import: ["": 20]>
stateful (float[batch, 16] frame, float[2, 1, 16] state, int64 rate)
    => (float[batch, 8] scores, float[2, 1, 16] next)
{
    projected = MatMul (frame, inner)
    late = Gather <axis: int = 0> (state, rate)
    both = Concat <axis: int = 1> (projected, late)
    there = Greater (both, zero)
    masked = Where (there, both, nothing)
    raised = Add (masked, both)
    shares = Softmax <axis: int = 1> (raised)
    scores = MatMul (shares, outer)
    recurrent = MatMul (state, again)
    sum = Add (recurrent, projected)
    next = Tanh (sum)
}
"""
STATE: dict[str, Any] = {
    "frame": floats(16, 16),
    "state": floats(16, 2, 1, 16, seed=1),
    "rate": np.arange(16) % 2,
}


@pytest.fixture
def nothing() -> float:
    """The value that masks out."""
    return -np.inf


@pytest.fixture
def stateful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: float) -> Path:
    """A network with a state, a number and a mask beside its input, and no maps in it."""
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(tmp_path / "store"))
    model = from_text(
        STATEFUL,
        inner=floats(16, 16),
        outer=floats(32, 8),
        again=floats(16, 16, seed=2),
        zero=np.zeros((), np.float32),
        nothing=np.full((), nothing, np.float32),
    )
    onnx_io.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "arrays.npz", **STATE)
    return tmp_path / "model.onnx"


def build(model: Path, **settings: Any) -> qconvert.Run:
    arrays = model.with_name("arrays.npz")
    return qconvert.build(
        model,
        output=model.with_name("run"),
        images=arrays,
        eval=arrays,
        backends=["cpu", "tensorrt-rtx"],
        settings={"quantize.effort": "none", **QUICK, **settings},
    )


@pytest.mark.long
@pytest.mark.parametrize("nothing", [-np.inf, float(np.finfo(np.float32).min)])
def test_graph_with_state_index_and_mask_builds_in_all_variants(stateful: Path) -> None:
    run = build(stateful, **{"export.batch": 1})
    variants = {variant.name: variant for variant in run.report.variants}
    assert len(variants) == 6
    for name, least in (("cpu-fp16", 50), ("cpu-int8", 20), ("tensorrt-rtx-int8", 20)):
        score = variants[name].accuracy
        assert score is not None
        assert score.sqnr_db is not None
        assert score.sqnr_db > least
        assert not any("not compared" in note for note in score.notes)
    left = {node.node: node.reason for node in variants["cpu-int8"].unquantized}
    assert any("`masked` has no range: it holds infinity" in reason for reason in left.values())
    assert variants["cpu-int8"].quantized >= 2


@pytest.mark.slow
def test_graph_fixed_to_batch_one_is_refused_before_any_work(stateful: Path) -> None:
    with pytest.raises(QConvertError, match="runs on a batch of 1 only") as raised:
        build(stateful)
    assert "`--batch 1`" in raised.value.hint
    assert not list((stateful.parent / "run").glob("engines/*"))
