"""A native build in a child: its engine, its progress, its refusals, and its death."""

import signal
import subprocess
from pathlib import Path

import pytest

from qconvert.backends import nvinfer, subprocess_worker
from qconvert.backends.base import Profile
from qconvert.backends.engine_folder import EngineGraph, copy_graph
from qconvert.backends.nvinfer import NativeBuildOptions
from qconvert.core.errors import QConvertError
from tests.backends.graphs import written

WISHES = NativeBuildOptions((Profile(1, 2, 4),))


def quiet(text: str, share: float | None) -> None:
    """Hear nothing."""


@pytest.fixture
def kept(tmp_path: Path) -> EngineGraph:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    (tmp_path / "engine").mkdir()
    return copy_graph(written(tmp_path, "tensorrt-rtx", "fp32"), tmp_path / "engine")


def test_progress_is_heard_and_the_engine_is_written(kept: EngineGraph) -> None:
    heard: list[tuple[str, float | None]] = []
    out = kept.folder / "model.engine"
    nvinfer.build_in_subprocess("tensorrt_rtx", kept, WISHES, out, lambda *told: heard.append(told))
    assert heard[-1] == ("built", 1.0)
    assert out.stat().st_size > 1000


def test_ctrl_c_ends_the_child(kept: EngineGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess_worker.start_python

    def remembered(code: str, *args: str, stderr: int = -1) -> subprocess.Popen[bytes]:
        started.append(start(code, *args, stderr=stderr))
        return started[-1]

    def interrupted(text: str, share: float | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess_worker, "start_python", remembered)
    out = kept.folder / "model.engine"
    with pytest.raises(KeyboardInterrupt):
        nvinfer.build_in_subprocess("tensorrt_rtx", kept, WISHES, out, interrupted)
    assert [each.returncode for each in started] == [-signal.SIGKILL]
    assert not out.exists()


def test_a_builder_that_crashes_is_told(
    kept: EngineGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(QConvertError, match=r"TensorRT for RTX did not survive .* \(SIGABRT\)"):
        nvinfer.build_in_subprocess(
            "tensorrt_rtx", kept, WISHES, kept.folder / "model.engine", quiet
        )


def test_a_disk_that_cannot_be_written_is_an_error_of_the_disk(kept: EngineGraph) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/model\.engine"):
        nvinfer.build_in_subprocess(
            "tensorrt_rtx", kept, WISHES, kept.folder / "no/model.engine", quiet
        )


def test_what_the_builder_refuses_comes_with_its_hint(kept: EngineGraph, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    asymmetric = copy_graph(written(tmp_path, "cpu", "int8"), tmp_path / "int8")
    with pytest.raises(QConvertError, match="cannot read this model") as caught:
        nvinfer.build_in_subprocess(
            "tensorrt_rtx", asymmetric, WISHES, tmp_path / "x.engine", quiet
        )
    assert "zero points of 0" in caught.value.hint
    assert "(QuantizeLinear): " in str(caught.value)
