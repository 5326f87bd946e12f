"""Every test of this folder runs qconvert, or the wheels alone, on a machine of the laboratory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import runs
from tests.gpu_lab.lab import environment, generate
from tests.gpu_lab.lab.environment import Finished, Host
from tests.gpu_lab.lab.script import Script

HERE = Path(__file__).parent
# Whole builds run with `make gpu-lab` alone, but for one from the probe to the report.
LONG = ("test_build", "test_doctor", "test_guide", "test_rtx")
WHOLE_BUILD = "test_build_runs_to_the_report_and_is_found_again[native]"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests, and skip them with the reason where the wheels are not fetched."""
    reason = environment.missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu_lab)
            item.add_marker(pytest.mark.slow)
            if item.path.stem in LONG and item.name != WHOLE_BUILD:
                item.add_marker(pytest.mark.long)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Machines:
    """Makes machines, each once in a test session."""

    folder: Path

    def gpu(self, without: str = "", tensorrt: str = "10.16.1.11") -> Path:
        """Return a machine with everything installed, or without a library."""
        libraries = [name for name in generate.GPU if name != without]
        folder = self.folder / f"gpu-{without}-{tensorrt}"
        if folder.is_dir():
            return folder
        return environment.make_host(folder, libraries=libraries, tensorrt=tensorrt)

    def rtx(self, *libraries: str) -> Path:
        """Return a machine with TensorRT for RTX, the plain ONNX Runtime and a driver alone.

        `libraries` are those of ours that take the place of the plugin's own, all if none is named.
        """
        names = libraries or tuple(environment.BROUGHT)
        folder = self.folder / f"rtx-{len(names)}"
        ours = {name: environment.BROUGHT[name] for name in names}
        return folder if folder.is_dir() else environment.make_rtx_host(folder, ours)


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """Return the machines of this test session."""
    return Machines(tmp_path_factory.mktemp("machines"))


@dataclass(frozen=True)
class Lab:
    """A machine as a test uses it: commands run in the folder of the test."""

    machines: Machines
    cwd: Path

    def host(self, machine: Path | None = None, **script: object) -> Host:
        """Return a machine under a script, the one with everything unless another is given."""
        values = {"QCONVERT_CACHE_DIR": str(self.cwd / ".store")}
        changed = replace(Script(), **script)  # type: ignore[arg-type]
        return Host(machine or self.machines.gpu(), changed, values)

    def qconvert(
        self, *args: str | Path, machine: Path | None = None, **script: object
    ) -> Finished:
        """Run a command as a user does."""
        return self.host(machine, **script).qconvert(*args, cwd=self.cwd)

    def python(self, code: str, *args: str, machine: Path | None = None, **script: object) -> str:
        """Return what some code prints, which must succeed."""
        done = self.host(machine, **script).run("-c", code, *args, cwd=self.cwd)
        assert done.code == 0, done.err
        return done.out

    def files(self) -> Sequence[str]:
        """Return the files beside the model, without the cache."""
        return sorted(path.name for path in self.cwd.iterdir() if path.name != ".store")


@pytest.fixture
def lab(machines: Machines, tmp_path: Path) -> Lab:
    """Return the laboratory."""
    return Lab(machines, tmp_path)


@pytest.fixture
def gpu(lab: Lab) -> Callable[..., Host]:
    """Return the machine with everything installed, under a script."""
    return lab.host


@pytest.fixture
def rtx(lab: Lab) -> Callable[..., Host]:
    """Return the machine with an RTX GPU, under a script."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

    def scripted(**script: object) -> Host:
        return lab.host(lab.machines.rtx(), **script)

    return scripted


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Write a model, calibration images and labelled evaluation images."""
    runs.draw_world(tmp_path)
    return tmp_path
