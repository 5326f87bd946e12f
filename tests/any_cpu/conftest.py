"""Tests of this folder run ONNX Runtime as other CPUs, and say why where that cannot be had."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.any_cpu import environment

HERE = Path(__file__).parent
RunAs = Callable[[str, Mapping[str, environment.File]], dict[str, environment.Arrays]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that emulate."""
    for item in items:
        names = getattr(item, "fixturenames", ()) if HERE in item.path.parents else ()
        if "run_as" in names:
            item.add_marker(pytest.mark.any_cpu)
            item.add_marker(pytest.mark.slow)
        if "arm" in names:
            item.add_marker(pytest.mark.long)


# `make test` runs the CPU that differs most from those with VNNI.
OTHERS = [name for name in environment.CPUS if name != "Haswell"]
ALL = ["Haswell", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]


@pytest.fixture(params=ALL)
def cpu(request: pytest.FixtureRequest) -> str:
    """Every CPU that can be emulated here."""
    name: str = request.param
    if reason := environment.missing(name):
        pytest.skip(reason)
    return name


@pytest.fixture(params=[name for name in OTHERS if environment.CPUS[name].machine == "aarch64"])
def arm(request: pytest.FixtureRequest) -> str:
    """Every CPU of ARM's."""
    name: str = request.param
    if reason := environment.missing(name):
        pytest.skip(reason)
    return name


@pytest.fixture
def run_as(tmp_path: Path) -> RunAs:
    """Run files as a CPU, with ONNX Runtime's defaults, in one process."""

    return lambda cpu, files: environment.run_files(cpu, files, tmp_path)
