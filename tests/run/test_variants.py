"""Graphs of variants: with state, integer inputs and masks, cached by everything they depend on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qconvert
from qconvert.backends.base import EngineVariant
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.run.calibrate import calibrate, load_calibration_set
from qconvert.run.variants import make_graph
from tests.models import floats, from_text
from tests.run.calibrated import calibrated_inputs
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


def build_stateful(nothing: float = -np.inf, **settings: Any) -> qconvert.Run:
    """Build a network with a state, a number and a mask of `nothing` beside its input."""
    model = from_text(
        STATEFUL,
        inner=floats(16, 16),
        outer=floats(32, 8),
        again=floats(16, 16, seed=2),
        zero=np.zeros((), np.float32),
        nothing=np.full((), nothing, np.float32),
    )
    onnx_io.save(model, Path("model.onnx"))
    state: dict[str, Any] = {"frame": floats(16, 16), "state": floats(16, 2, 1, 16, seed=1)}
    np.savez("arrays.npz", **state, rate=np.arange(16) % 2)
    return qconvert.build(
        "model.onnx",
        output="run",
        images="arrays.npz",
        eval="arrays.npz",
        backends=["cpu", "tensorrt-rtx"],
        settings={"quantize.effort": "none", **QUICK, **settings},
    )


@pytest.mark.long
@pytest.mark.parametrize("nothing", [-np.inf, float(np.finfo(np.float32).min)])
def test_graph_with_state_index_and_mask_builds_in_all_variants(nothing: float) -> None:
    run = build_stateful(nothing, **{"export.batch": 1})
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
def test_graph_fixed_to_batch_one_is_refused_before_any_work() -> None:
    with pytest.raises(QConvertError, match="runs on a batch of 1 only") as raised:
        build_stateful()
    assert "`--batch 1`" in raised.value.hint
    assert not list(Path("run").glob("engines/*"))


@pytest.mark.slow
def test_graph_of_a_resumed_run_is_not_reused_for_a_new_run() -> None:
    new, context = calibrated_inputs()
    calibrate(context, Path("c.npz"))
    resumed = replace(new, calibration=load_calibration_set(new.loaded, context, Path("c.npz")))
    of_resumed, of_new, of_new_again = (
        make_graph(EngineVariant("cpu", "int8"), inputs, context).folder
        for inputs in (resumed, new, new)
    )
    assert of_resumed != of_new == of_new_again
