"""A clock that is wrong or jumps changes no result, loses nothing finished, and leaves nothing."""

import os
import time
from pathlib import Path

import pytest

from tests.torture.jobs import JOBS, Job, hit, left_behind
from tests.torture.test_kill import REPEATABLE
from tests.torture.whole import facts
from tests.torture.world import FEW, World, ended

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

CLOCK = Path(__file__).with_name("clock.py")
YEAR = 365 * 24 * 3600
JUMPS = {
    "a year ahead": (YEAR,),
    "a year behind": (-YEAR,),
    "back by an hour, again and again": (0, -3600, -7200),
    "between two years": (YEAR, -YEAR),
}


def date(place: Path, seconds: float) -> None:
    """Date everything below a folder so many seconds from now."""
    for path in (place, *place.rglob("*")):
        os.utime(path, (time.time() + seconds, time.time() + seconds))


@pytest.mark.parametrize("jumps", JUMPS)
def test_a_build_under_a_clock_that_jumps(jumps: str, world: World, tmp_path: Path) -> None:
    calm, run, cache = tmp_path / "calm", tmp_path / "run", tmp_path / "cache"
    assert world.build(calm, tmp_path / "calm-cache", FEW).code == 0
    words = ["-P", str(CLOCK), ",".join(map(str, JUMPS[jumps])), *world.args(run, FEW)]
    for stored in (False, True):
        done = ended(world.start(words, cache))
        assert done.code == 0, done.err
        assert facts(run) == facts(calm)
        found = [done.steps[step] for step in done.steps if step.split()[0] in REPEATABLE]
        assert set(found) == {stored} or not stored
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("seconds", [YEAR, -YEAR])
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_what_a_killed_command_left_is_found_and_swept_under_any_date(
    job: Job, seconds: float, world: World, tmp_path: Path
) -> None:
    calm, place = tmp_path / "calm", tmp_path / "place"
    for folder in (calm, place):
        folder.mkdir()
    started = time.monotonic()
    assert job.run(world, calm).code == 0
    killed = hit(job, world, place, 0.8 * (time.monotonic() - started), 9)
    date(place, seconds)
    again = job.run(world, place)
    assert again.code == 0, again.err
    assert job.facts(place) == job.facts(calm)
    assert left_behind(place) == []
    stored = [step for step in killed.steps if step.split()[0] in ("prepare", "learn", "search")]
    assert [step for step in stored if not again.steps.get(step, True)] == []
