"""`kill -9` before any change to the disk leaves no incomplete file, and no step is repeated."""

import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.torture.conftest import Baseline
from tests.torture.environment import Environment, Finished, Interruption, wait_for
from tests.torture.run_content import incomplete_parts, leftovers, stable_facts

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

MOMENTS = 20
RNG = random.Random(5)
REPEATABLE = ("prepare", "calibrate", "quantize", "build", "bench", "inspect", "evaluate")


@dataclass(frozen=True)
class Attempt:
    """A killed run, its visible files, and the repeated command."""

    when: str
    killed: Finished
    incomplete: list[str]
    again: Finished
    facts: dict[str, Any]
    after: list[str]
    leftovers: list[str]


def after(when: str, environment: Environment, killed: Finished, folder: Path) -> Attempt:
    """Record what a killed run left, repeat the command, and record what is there then."""
    run, cache = folder / "run", folder / "cache"
    left = incomplete_parts(run)
    again = environment.build(run, cache)
    attempt = Attempt(
        when,
        killed,
        left,
        again,
        stable_facts(run) if again.code == 0 else {},
        incomplete_parts(run),
        leftovers(run),
    )
    shutil.rmtree(folder)
    return attempt


@pytest.fixture(scope="module")
def attempts(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> list[Attempt]:
    """Kill builds before changes that are spread over the whole build."""
    records, folder = [], tmp_path_factory.mktemp("killed") / "place"
    changes = environment.changes(folder / "run", folder / "cache")
    shutil.rmtree(folder)
    for part in range(MOMENTS):
        folder.mkdir()
        at = int((part + RNG.random()) / MOMENTS * changes) + 1
        killed = wait_for(
            environment.start_interrupted(folder / "run", folder / "cache", Interruption(at))
        )
        records.append(after(f"change {at} of {changes}", environment, killed, folder))
    return records


def test_builds_were_killed_while_working(attempts: list[Attempt]) -> None:
    codes = [attempt.killed.code for attempt in attempts]
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) >= MOMENTS - 2
    assert len({len(attempt.killed.steps) for attempt in attempts}) > MOMENTS / 2


def test_visible_files_of_killed_build_are_complete(attempts: list[Attempt]) -> None:
    assert {attempt.when: attempt.incomplete for attempt in attempts if attempt.incomplete} == {}


def test_repeated_command_finishes(attempts: list[Attempt]) -> None:
    assert {attempt.when: attempt.again.err for attempt in attempts if attempt.again.code} == {}
    assert {attempt.when: attempt.after for attempt in attempts if attempt.after} == {}


def test_report_equals_that_of_undisturbed_run(attempts: list[Attempt], baseline: Baseline) -> None:
    for attempt in attempts:
        assert attempt.facts == baseline.facts, attempt.when


def test_finished_steps_are_not_repeated(attempts: list[Attempt]) -> None:
    repeated = {
        attempt.when: [
            step
            for step in attempt.killed.steps
            # Learning is printed a moment before the step it belongs to is cached.
            if step.split()[0] in REPEATABLE and not attempt.again.steps.get(step, True)
        ]
        for attempt in attempts
    }
    assert {when: steps for when, steps in repeated.items() if steps} == {}
    assert {step.split()[0] for step in attempts[-1].again.steps} >= set(REPEATABLE)


def test_finished_run_has_no_temporary_folders(attempts: list[Attempt]) -> None:
    assert {attempt.when: attempt.leftovers for attempt in attempts if attempt.leftovers} == {}
