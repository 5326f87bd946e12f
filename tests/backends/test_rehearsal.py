"""Graphs nobody has run here are tried by a child: what kills it, or never ends, is refused."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends import crash_check, subprocess_worker
from qconvert.backends.crash_check import check_file_for_crash, check_for_crash
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import random_inputs
from tests.models import from_text, tiny

ENDLESS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 4] x) => (float[N, 4] y) {
    y = Loop (never, go, x) <
        body = round (int64 at, bool on, float[N, 4] a) => (bool still, float[N, 4] b) {
            still = Identity (on)
            b = Identity (a)
        }
    >
}
"""
FATAL = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


@pytest.fixture(autouse=True)
def _nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_check, "_passed", set())


def endless() -> ir.Model:
    return from_text(ENDLESS, never=np.array(2**62), go=np.array(True))


def runtime_that_dies(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let children import an ONNX Runtime that dies of a signal."""
    (folder / "onnxruntime.py").write_text(FATAL.format(name))
    monkeypatch.setattr(subprocess_worker, "PACKAGE_ROOT", folder)


def test_a_loop_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_check, "LOOPING_SECONDS", 2.0)
    model = endless()
    with pytest.raises(QConvertError, match="did not come to an end within 2 s"):
        check_for_crash(model, random_inputs(onnx_io.inputs(model), 2, seed=0))


def test_only_graphs_with_loops_have_a_limit_that_a_slow_one_could_meet() -> None:
    assert crash_check.time_limit_seconds(endless()) < 25
    assert crash_check.time_limit_seconds(tiny()) > 1000


@pytest.mark.parametrize(
    ("name", "said"), [("SIGSEGV", "signal 11 (SIGSEGV)"), ("SIGKILL", "want of memory")]
)
@pytest.mark.parametrize("in_memory", [onnx_io.IN_MEMORY_BYTES, 100])
def test_a_crash_of_the_runtime_is_told_and_contained(
    in_memory: int, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "IN_MEMORY_BYTES", in_memory)
    check_for_crash(tiny(), random_inputs(onnx_io.inputs(tiny()), 2, seed=0))
    runtime_that_dies(tmp_path, name, monkeypatch)
    with pytest.raises(QConvertError) as caught:
        check_for_crash(tiny(), {})
    assert said in str(caught.value)


def test_what_survived_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    feeds = random_inputs(onnx_io.inputs(model), 2, seed=0)
    onnx_io.save(model, tmp_path / "tiny.onnx")
    check_for_crash(model, feeds)
    check_file_for_crash(tmp_path / "tiny.onnx", {}, 60)
    runtime_that_dies(tmp_path, "SIGSEGV", monkeypatch)
    check_for_crash(model, feeds)
    check_file_for_crash(tmp_path / "tiny.onnx", {}, 60)
    with pytest.raises(QConvertError, match="does not survive"):
        check_for_crash(model, random_inputs(onnx_io.inputs(model), 3, seed=0))


def test_what_the_runtime_refuses_in_words_is_left_to_it() -> None:
    model = tiny()
    check_for_crash(model, {"image": np.zeros((1, 9, 8, 8), np.float32)})
