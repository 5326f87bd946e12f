"""Any long command, hit by a signal at any moment, goes on to the same result and leaves no trace.

QCONVERT_TORTURE_MOMENTS says how many moments each command is hit at.
"""

import os
import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.torture.jobs import JOBS, Job, hit, left_behind, orphans, visible_halves
from tests.torture.world import Done, World

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

MOMENTS = int(os.environ.get("QCONVERT_TORTURE_MOMENTS", "40"))
# Of ten moments, eight are `kill -9`, one is Ctrl-C, one is what `docker stop` and systemd send.
SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGINT, signal.SIGTERM)
STORED = ("prepare", "learn", "search", "build", "bench", "inspect", "evaluate")
CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Blow:
    """One command that got a signal, and how the same command ended then."""

    when: str
    number: int
    done: Done
    again: Done
    same: bool
    wrong: list[str] = field(default_factory=list)


def blow(job: Job, world: World, place: Path, when: tuple[float, int], wanted: Any) -> Blow:
    seconds, number = when
    place.mkdir()
    done = hit(job, world, place, seconds, number)
    wrong = [f"half: {each}" for each in visible_halves(job, place)]
    wrong += [f"orphan: {each}" for each in orphans(place)]
    again = job.run(world, place)
    same = again.code == 0 and job.facts(place) == wanted
    wrong += [f"left: {each}" for each in left_behind(place)]
    shutil.rmtree(place)
    return Blow(
        f"{signal.Signals(number).name} after {seconds:.2f} s", number, done, again, same, wrong
    )


@pytest.fixture(scope="module", params=JOBS, ids=lambda job: job.name)
def blows(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> list[Blow]:
    """Hit one command at moments spread over the time that it takes."""
    job: Job = request.param
    calm = tmp_path_factory.mktemp("calm")
    started = os.times().elapsed
    assert job.run(world, calm).code == 0
    took, wanted = os.times().elapsed - started, job.facts(calm)
    chance = random.Random(job.name)
    place = tmp_path_factory.mktemp("hit") / "place"
    moments = [(part + chance.random()) / MOMENTS * took for part in range(MOMENTS)]
    signals = chance.sample([SIGNALS[at % len(SIGNALS)] for at in range(MOMENTS)], MOMENTS)
    return [blow(job, world, place, when, wanted) for when in zip(moments, signals, strict=True)]


def test_a_signal_ends_it_with_the_code_for_that_and_no_traceback(blows: list[Blow]) -> None:
    odd = {
        each.when: (each.done.code, each.done.err)
        for each in blows
        # Python itself no longer listens once it has done all and is about to leave.
        if each.done.code not in (0, CODES[signal.Signals(each.number)], -each.number)
        # A worker whose parent was killed while it started has words of Python's own for that.
        or (each.number != signal.SIGKILL and "Traceback" in each.done.err)
    }
    assert odd == {}
    assert sum(each.done.code != 0 for each in blows) > 0.6 * len(blows)


def test_the_same_command_then_ends_with_the_same_result(blows: list[Blow]) -> None:
    wrong = {each.when: each.again.err for each in blows if not each.same}
    assert wrong == {}


def test_nothing_half_no_process_and_no_draft_or_lock_is_left(blows: list[Blow]) -> None:
    assert {each.when: each.wrong for each in blows if each.wrong} == {}


def test_no_finished_step_is_repeated(blows: list[Blow]) -> None:
    repeated = {
        each.when: [
            step
            for step in each.done.steps
            if step.split()[0] in STORED and not each.again.steps.get(step, True)
        ]
        for each in blows
    }
    assert {when: steps for when, steps in repeated.items() if steps} == {}
