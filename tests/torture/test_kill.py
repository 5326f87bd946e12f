"""`kill -9` before any change of the disk: nothing half, nothing done twice, the same report."""

import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.torture.conftest import Calm
from tests.torture.whole import facts, halves, leftovers
from tests.torture.world import Done, Stumble, World, ended

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

MOMENTS = 20
CHANCE = random.Random(5)
REPEATABLE = ("prepare", "calibrate", "quantize", "build", "bench", "inspect", "evaluate")


@dataclass(frozen=True)
class Blow:
    """A run that was killed, what it left to see, and the same command again."""

    when: str
    killed: Done
    halves: list[str]
    again: Done
    facts: dict[str, Any]
    after: list[str]
    leftovers: list[str]


def after(when: str, world: World, killed: Done, place: Path) -> Blow:
    """Look at what a killed run left, run the command again, and look once more."""
    run, cache = place / "run", place / "cache"
    left = halves(run)
    again = world.build(run, cache)
    blow = Blow(
        when,
        killed,
        left,
        again,
        facts(run) if again.code == 0 else {},
        halves(run),
        leftovers(run),
    )
    shutil.rmtree(place)
    return blow


@pytest.fixture(scope="module")
def blows(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Blow]:
    """Kill builds before changes spread over all that they make."""
    found, place = [], tmp_path_factory.mktemp("killed") / "place"
    changes = world.changes(place / "run", place / "cache")
    shutil.rmtree(place)
    for part in range(MOMENTS):
        place.mkdir()
        at = int((part + CHANCE.random()) / MOMENTS * changes) + 1
        killed = ended(world.stumbling(place / "run", place / "cache", Stumble(at)))
        found.append(after(f"change {at} of {changes}", world, killed, place))
    return found


def test_the_builds_were_killed_at_work(blows: list[Blow]) -> None:
    codes = [blow.killed.code for blow in blows]
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) >= MOMENTS - 2
    assert len({len(blow.killed.steps) for blow in blows}) > MOMENTS / 2


def test_all_that_a_killed_build_shows_is_whole(blows: list[Blow]) -> None:
    assert {blow.when: blow.halves for blow in blows if blow.halves} == {}


def test_the_same_command_goes_on_to_the_end(blows: list[Blow]) -> None:
    assert {blow.when: blow.again.err for blow in blows if blow.again.code} == {}
    assert {blow.when: blow.after for blow in blows if blow.after} == {}


def test_the_report_is_that_of_an_undisturbed_run(blows: list[Blow], calm: Calm) -> None:
    for blow in blows:
        assert blow.facts == calm.facts, blow.when


def test_no_finished_step_is_repeated(blows: list[Blow]) -> None:
    repeated = {
        blow.when: [
            step
            for step in blow.killed.steps
            # Learning and its parts are told a moment before what they belong to is stored.
            if step.split()[0] in REPEATABLE and not blow.again.steps.get(step, True)
        ]
        for blow in blows
    }
    assert {when: steps for when, steps in repeated.items() if steps} == {}
    assert {step.split()[0] for step in blows[-1].again.steps} >= set(REPEATABLE)


def test_no_draft_is_left_in_the_folder_of_a_finished_run(blows: list[Blow]) -> None:
    assert {blow.when: blow.leftovers for blow in blows if blow.leftovers} == {}
