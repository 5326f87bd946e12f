"""Untrusted graphs run in a child process first; graphs that crash or hang it are refused."""

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends import crash_check, subprocess_worker
from qconvert.backends.crash_check import check_for_crash
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, random_inputs
from tests.models import from_text, tiny

NUMBERS = itertools.count()
ENDLESS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 4] x) => (float[N, 4] y) {
    y = Loop (count, condition, x) <
        body = step (int64 index, bool on, float[N, 4] a) => (bool still, float[N, 4] b) {
            still = Identity (on)
            b = Identity (a)
        }
    >
}
"""


def unseen() -> ir.Model:
    """Return a model that no test has checked before."""
    model = tiny()
    model.metadata_props["test"] = str(next(NUMBERS))
    return model


def endless_model() -> ir.Model:
    return from_text(ENDLESS, count=np.array(2**62), condition=np.array(True))


def inputs(model: ir.Model, batch: int = 2) -> Tensors:
    return random_inputs(onnx_io.inputs(model), batch, seed=0)


def install_crashing_runtime(folder: Path, signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make child processes import an ONNX Runtime that dies of a signal."""
    code = f"import os, signal\nos.kill(os.getpid(), signal.{signal})\n"
    (folder / "onnxruntime.py").write_text(code)
    monkeypatch.setattr(subprocess_worker, "PACKAGE_ROOT", folder)


@pytest.mark.slow
def test_endless_loop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_check, "LOOP_SECONDS", 1.0)
    model = endless_model()
    with pytest.raises(QConvertError, match="did not finish within 1 s"):
        check_for_crash(model, inputs(model))


def test_short_time_limit_applies_to_graphs_with_loops_alone() -> None:
    assert crash_check.time_limit_seconds(endless_model()) < 25
    assert crash_check.time_limit_seconds(tiny()) > 1000


@pytest.mark.parametrize(
    ("signal", "message"), [("SIGSEGV", "signal 11 (SIGSEGV)"), ("SIGKILL", "memory ran out")]
)
@pytest.mark.parametrize("in_memory", [onnx_io.IN_MEMORY_BYTES, 100])
def test_crash_of_the_runtime_is_reported(
    in_memory: int, signal: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "IN_MEMORY_BYTES", in_memory)
    install_crashing_runtime(tmp_path, signal, monkeypatch)
    with pytest.raises(QConvertError, match="ONNX Runtime crashed on this model") as caught:
        check_for_crash(unseen(), {})
    assert message in str(caught.value)


def test_model_that_passed_is_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = unseen()
    onnx_io.save(model, tmp_path / "tiny.onnx")
    check_for_crash(model, inputs(model))
    check_for_crash(model, {}, tmp_path / "tiny.onnx")
    install_crashing_runtime(tmp_path, "SIGSEGV", monkeypatch)
    check_for_crash(model, inputs(model))
    check_for_crash(model, {}, tmp_path / "tiny.onnx")
    with pytest.raises(QConvertError, match="crashed on this model"):
        check_for_crash(model, inputs(model, batch=3))


def test_runtime_error_is_not_reported_as_crash() -> None:
    check_for_crash(tiny(), {"image": np.zeros((1, 9, 8, 8), np.float32)})
