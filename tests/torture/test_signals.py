"""Long commands, interrupted at any moment, resume to the same result and leave nothing behind.

QCONVERT_TORTURE_MOMENTS sets how often each command is interrupted.
"""

import os
import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.torture.commands import (
    COMMANDS,
    Command,
    incomplete_files,
    leftover_files,
    leftover_processes,
    run_and_signal,
)
from tests.torture.environment import Environment, Finished

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

MOMENTS = int(os.environ.get("QCONVERT_TORTURE_MOMENTS", "40"))
# Of ten signals, eight are `kill -9`, one is Ctrl-C, one is that of `docker stop` and systemd.
SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGINT, signal.SIGTERM)
STORED = ("prepare", "learn", "search", "build", "bench", "inspect", "evaluate")
CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Attempt:
    """A command that got a signal, and the outcome of the repeated command."""

    when: str
    number: int
    outcome: Finished
    again: Finished
    same: bool
    wrong: list[str] = field(default_factory=list)


def attempt(
    command: Command, environment: Environment, folder: Path, when: tuple[float, int], expected: Any
) -> Attempt:
    seconds, number = when
    folder.mkdir()
    outcome = run_and_signal(command, environment, folder, seconds, number)
    wrong = [f"half: {problem}" for problem in incomplete_files(command, folder)]
    wrong += [f"orphan: {problem}" for problem in leftover_processes(folder)]
    again = command.run(environment, folder)
    same = again.code == 0 and command.stable_facts(folder) == expected
    wrong += [f"left: {problem}" for problem in leftover_files(folder)]
    shutil.rmtree(folder)
    return Attempt(
        f"{signal.Signals(number).name} after {seconds:.2f} s", number, outcome, again, same, wrong
    )


@pytest.fixture(scope="module", params=COMMANDS, ids=lambda command: command.name)
def attempts(
    request: pytest.FixtureRequest,
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Attempt]:
    """Interrupt one command at moments spread over its whole duration."""
    command: Command = request.param
    baseline = tmp_path_factory.mktemp("calm")
    started = os.times().elapsed
    assert command.run(environment, baseline).code == 0
    duration, expected = os.times().elapsed - started, command.stable_facts(baseline)
    rng = random.Random(command.name)
    folder = tmp_path_factory.mktemp("hit") / "place"
    moments = [(part + rng.random()) / MOMENTS * duration for part in range(MOMENTS)]
    signals = rng.sample([SIGNALS[at % len(SIGNALS)] for at in range(MOMENTS)], MOMENTS)
    return [
        attempt(command, environment, folder, when, expected)
        for when in zip(moments, signals, strict=True)
    ]


def test_signal_ends_command_with_its_exit_code_and_no_traceback(attempts: list[Attempt]) -> None:
    unexpected = {
        attempt.when: (attempt.outcome.code, attempt.outcome.err)
        for attempt in attempts
        # Python no longer handles signals once it is about to exit.
        if attempt.outcome.code not in (0, CODES[signal.Signals(attempt.number)], -attempt.number)
        # A worker whose parent is killed during its start prints a traceback of Python's own.
        or (attempt.number != signal.SIGKILL and "Traceback" in attempt.outcome.err)
    }
    assert unexpected == {}
    assert sum(attempt.outcome.code != 0 for attempt in attempts) > 0.6 * len(attempts)


def test_repeated_command_gives_the_same_result(attempts: list[Attempt]) -> None:
    wrong = {attempt.when: attempt.again.err for attempt in attempts if not attempt.same}
    assert wrong == {}


def test_no_incomplete_file_process_or_lock_is_left(attempts: list[Attempt]) -> None:
    assert {attempt.when: attempt.wrong for attempt in attempts if attempt.wrong} == {}


def test_finished_steps_are_not_repeated(attempts: list[Attempt]) -> None:
    repeated = {
        attempt.when: [
            step
            for step in attempt.outcome.steps
            if step.split()[0] in STORED and not attempt.again.steps.get(step, True)
        ]
        for attempt in attempts
    }
    assert {when: steps for when, steps in repeated.items() if steps} == {}
