"""Every test runs in its own folder, with its own cache and a clean environment."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest

from qconvert.cli import console, main
from qconvert.cli.error_boundary import run_guarded
from qconvert.core import onnx_io
from tests import models, runs, shared
from tests.gpu_lab import table


@pytest.fixture(autouse=True)
def _isolated_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(tmp_path / ".store"))
    # `make test` passes these to a nested make, which then prints more.
    for name in ("NO_COLOR", "MAKELEVEL", "MAKEFLAGS", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console.VERBOSITY, "level", 0)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    # A job in the background of a script ignores SIGINT, and so would all child processes.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = tmp_path_factory.getbasetemp()
    # The folder of a worker of pytest-xdist lies in that of the session.
    shared.begin_session(own.parent if hasattr(request.config, "workerinput") else own)


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def qconvert(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process, with the error handling that a user gets."""

    def run(*args: str | Path) -> Outcome:
        console.VERBOSITY.level = 0
        capsys.readouterr()
        code = run_guarded(main, [str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the installed command in a separate process, as a user does."""

    def run(*args: str | Path, cwd: Path = tmp_path, **environment: str) -> Outcome:
        process = subprocess.run(
            [sys.executable, "-m", "qconvert", *map(str, args)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Outcome(process.returncode, process.stdout, process.stderr)

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Write the smallest classifier as `tiny.onnx`."""
    return write(models.tiny(), tmp_path / "tiny.onnx")


@pytest.fixture(scope="session")
def shared_run() -> Path:
    """Build a run with its model and images, once."""
    return shared.once("run", runs.build)


@pytest.fixture
def world(shared_run: Path, tmp_path: Path) -> Path:
    """Copy the shared run, its model, images and cache into the folder of a test."""
    shutil.copytree(shared_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def write(model: ir.Model, path: Path) -> Path:
    """Save a model and return its path."""
    onnx_io.save(model, path)
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests of the shared run as slow: building it takes seconds.

    Tests of GPU backends let the report hold what they prove.
    """
    for item in items:
        if "shared_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    table.record(items)
    if hasattr(config, "workerinput"):
        _begin_with_long_files(items)


def pytest_collection_finish() -> None:
    """Leave out of garbage collections what was imported: each timing of engines starts one."""
    gc.collect()
    gc.freeze()


def _begin_with_long_files(items: list[pytest.Item]) -> None:
    """Order the files so that no worker of pytest-xdist ends alone with a long one."""
    seconds = Counter[Path]()
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        seconds[item.path] += 100 if "long" in marks else 10 if "slow" in marks else 1
    items.sort(key=lambda item: (-seconds[item.path], item.path))
