"""A full disk: the error names the folder, no file is incomplete, and the build resumes later."""

from pathlib import Path

import pytest

from tests.torture.conftest import Baseline
from tests.torture.environment import FEW, Environment
from tests.torture.file_systems import require_clear_error, with_file_size_limit, with_full_disk
from tests.torture.run_content import incomplete_parts, leftovers, stable_facts

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

# Bytes left: too few for settings, graphs, the calibration, small and large engines, in turn.
LARGEST = (500, 5_000, 10_000, 14_500, 30_000, 100_000, 400_000)


@pytest.mark.parametrize("largest", LARGEST)
def test_file_size_limit_ends_with_clear_error(
    largest: int, environment: Environment, baseline: Baseline, tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    outcome = environment.build(run, cache, around=with_file_size_limit(largest))
    assert incomplete_parts(run) + leftovers(run) == []
    if largest in (10_000, 400_000):
        assert environment.build(run, cache).code == 0
        assert stable_facts(run) == baseline.facts
    require_clear_error(outcome, run, cache)


@pytest.mark.parametrize("room", [4, 12, 40, 100, 240, 1000, 1800])
@pytest.mark.parametrize("full", ["run", "cache"])
def test_full_disk_ends_with_clear_error(
    full: str, room: int, environment: Environment, baseline: Baseline, tmp_path: Path
) -> None:
    """`room` is in KiB; a run needs 1900, a cache 2000."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    run, cache = tmp_path / "run", tmp_path / "cache"
    around = with_full_disk(disk, room, kept)
    if full == "run":
        outcome, run = environment.build(disk / "run", cache, around=around), kept / "run"
    else:
        outcome, cache = environment.build(run, disk / "cache", around=around), kept / "cache"
    assert incomplete_parts(run) + leftovers(run) == []
    if room in (12, 240):
        assert environment.build(run, cache).code == 0
        assert stable_facts(run) == baseline.facts
    require_clear_error(outcome, disk)


@pytest.mark.parametrize("room", [4, 16, 24, 36, 48])
def test_full_disk_during_engine_build_ends_with_clear_error(
    room: int, environment: Environment, tmp_path: Path
) -> None:
    """ONNX Runtime writes its optimized copy itself, and reports failures in its own words."""
    options = (*FEW, "--precision", "int8")
    run, cache, disk = tmp_path / "run", tmp_path / "cache", tmp_path / "disk"
    assert environment.build(tmp_path / "plan", cache, (*options, "--plan-only")).code == 0
    around = with_full_disk(disk, room, tmp_path / "kept", cache)
    outcome = environment.build(run, disk, options, around)
    assert incomplete_parts(run) + leftovers(run) == []
    require_clear_error(outcome, disk)
