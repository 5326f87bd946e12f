"""Every test of this folder runs qconvert, or the wheels alone, on a machine of the laboratory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import runs
from tests.gpu_lab.lab import environment
from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.script import Script

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests, and skip them with the reason where the wheels are not fetched."""
    reason = environment.missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu_lab)
            item.add_marker(pytest.mark.slow)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a machine with everything installed."""
    return environment.make_host(tmp_path_factory.mktemp("machines") / "gpu")


@pytest.fixture
def gpu(gpu_folder: Path, tmp_path: Path) -> Callable[..., Host]:
    """Return the machine with everything installed, under a script."""

    def scripted(**script: object) -> Host:
        values = {"QCONVERT_CACHE_DIR": str(tmp_path / ".store")}
        return Host(gpu_folder, dataclasses.replace(Script(), **script), values)  # type: ignore[arg-type]

    return scripted


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Write a model, calibration images and labelled evaluation images."""
    runs.draw_world(tmp_path)
    return tmp_path
