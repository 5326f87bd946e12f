"""No room for a build: one sentence that names the place, nothing half, and it goes on later."""

from pathlib import Path

import pytest

from tests.torture.conftest import Calm
from tests.torture.places import full_disk, require_told, small_files
from tests.torture.whole import facts, halves, leftovers
from tests.torture.world import FEW, World

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

# In bytes: settings, graphs, the calibration, small and large engines do not fit, in turn.
LARGEST = (500, 5_000, 10_000, 14_500, 30_000, 100_000, 400_000)


@pytest.mark.parametrize("largest", LARGEST)
def test_files_that_may_not_grow_so_large(
    largest: int, world: World, calm: Calm, tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    done = world.build(run, cache, around=small_files(largest))
    assert halves(run) + leftovers(run) == []
    if largest in (10_000, 400_000):
        assert world.build(run, cache).code == 0
        assert facts(run) == calm.facts
    require_told(done, run, cache)


@pytest.mark.parametrize("room", [4, 12, 40, 100, 240, 1000, 1800])
@pytest.mark.parametrize("full", ["run", "cache"])
def test_a_full_disk(full: str, room: int, world: World, calm: Calm, tmp_path: Path) -> None:
    """Of the `room` in KiB a run needs 1900, a cache 2000."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    run, cache = tmp_path / "run", tmp_path / "cache"
    around = full_disk(disk, room, kept)
    if full == "run":
        done, run = world.build(disk / "run", cache, around=around), kept / "run"
    else:
        done, cache = world.build(run, disk / "cache", around=around), kept / "cache"
    assert halves(run) + leftovers(run) == []
    if room in (12, 240):
        assert world.build(run, cache).code == 0
        assert facts(run) == calm.facts
    require_told(done, disk)


@pytest.mark.parametrize("room", [4, 16, 24, 36, 48])
def test_a_disk_with_no_room_for_an_engine(room: int, world: World, tmp_path: Path) -> None:
    """ONNX Runtime writes its optimized copy itself, and has its own words where it cannot."""
    chosen = (*FEW, "--precision", "int8")
    run, cache, disk = tmp_path / "run", tmp_path / "cache", tmp_path / "disk"
    assert world.build(tmp_path / "plan", cache, (*chosen, "--plan-only")).code == 0
    around = full_disk(disk, room, tmp_path / "kept", cache)
    done = world.build(run, disk, chosen, around)
    assert halves(run) + leftovers(run) == []
    require_told(done, disk)
