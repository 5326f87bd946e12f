"""A wrong or jumping clock changes no result, loses no finished step and leaves no files behind."""

import os
import time
from pathlib import Path

import pytest

from tests.torture.commands import COMMANDS, Command, leftover_files, run_and_signal
from tests.torture.environment import FEW, Environment, wait_for
from tests.torture.run_content import stable_facts
from tests.torture.test_kill import REPEATABLE

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

CLOCK = Path(__file__).with_name("clock.py")
YEAR = 365 * 24 * 3600
JUMPS = {
    "a year ahead": (YEAR,),
    "a year behind": (-YEAR,),
    "back by an hour, again and again": (0, -3600, -7200),
    "between two years": (YEAR, -YEAR),
}


def date(folder: Path, seconds: float) -> None:
    """Set the date of everything in a folder to some seconds from now."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() + seconds, time.time() + seconds))


@pytest.mark.parametrize("jumps", JUMPS)
def test_build_under_jumping_clock_gives_the_same_result(
    jumps: str, environment: Environment, tmp_path: Path
) -> None:
    baseline, run, cache = tmp_path / "calm", tmp_path / "run", tmp_path / "cache"
    assert environment.build(baseline, tmp_path / "calm-cache", FEW).code == 0
    words = ["-P", str(CLOCK), ",".join(map(str, JUMPS[jumps])), *environment.args(run, FEW)]
    for stored in (False, True):
        outcome = wait_for(environment.start(words, cache))
        assert outcome.code == 0, outcome.err
        assert stable_facts(run) == stable_facts(baseline)
        cached = [outcome.steps[step] for step in outcome.steps if step.split()[0] in REPEATABLE]
        assert set(cached) == {stored} or not stored
    assert leftover_files(tmp_path) == []


@pytest.mark.parametrize("seconds", [YEAR, -YEAR])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_leftovers_of_killed_command_are_removed_whatever_their_date(
    command: Command, seconds: float, environment: Environment, tmp_path: Path
) -> None:
    baseline, folder = tmp_path / "calm", tmp_path / "place"
    baseline.mkdir()
    folder.mkdir()
    started = time.monotonic()
    assert command.run(environment, baseline).code == 0
    killed = run_and_signal(command, environment, folder, 0.8 * (time.monotonic() - started), 9)
    date(folder, seconds)
    again = command.run(environment, folder)
    assert again.code == 0, again.err
    assert command.stable_facts(folder) == command.stable_facts(baseline)
    assert leftover_files(folder) == []
    stored = [step for step in killed.steps if step.split()[0] in ("prepare", "learn", "search")]
    assert [step for step in stored if not again.steps.get(step, True)] == []
