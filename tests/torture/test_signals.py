"""Long commands, interrupted at any moment, resume to the same result and leave nothing behind.

QCONVERT_TORTURE_MOMENTS says at how many moments each command is interrupted.
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
# Of ten moments, eight are `kill -9`, one is Ctrl-C, one is what `docker stop` and systemd send.
SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGINT, signal.SIGTERM)
STORED = ("prepare", "learn", "search", "build", "bench", "inspect", "evaluate")
CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Attempt:
    """One command that got a signal, and how the same command ended then."""

    when: str
    number: int
    done: Finished
    again: Finished
    same: bool
    wrong: list[str] = field(default_factory=list)


def attempt(
    command: Command, environment: Environment, folder: Path, when: tuple[float, int], expected: Any
) -> Attempt:
    seconds, number = when
    folder.mkdir()
    done = run_and_signal(command, environment, folder, seconds, number)
    wrong = [f"half: {each}" for each in incomplete_files(command, folder)]
    wrong += [f"orphan: {each}" for each in leftover_processes(folder)]
    again = command.run(environment, folder)
    same = again.code == 0 and command.stable_facts(folder) == expected
    wrong += [f"left: {each}" for each in leftover_files(folder)]
    shutil.rmtree(folder)
    return Attempt(
        f"{signal.Signals(number).name} after {seconds:.2f} s", number, done, again, same, wrong
    )


@pytest.fixture(scope="module", params=COMMANDS, ids=lambda command: command.name)
def attempts(
    request: pytest.FixtureRequest,
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Attempt]:
    """Hit one command at moments spread over the time that it takes."""
    command: Command = request.param
    baseline = tmp_path_factory.mktemp("calm")
    started = os.times().elapsed
    assert command.run(environment, baseline).code == 0
    took, expected = os.times().elapsed - started, command.stable_facts(baseline)
    rng = random.Random(command.name)
    folder = tmp_path_factory.mktemp("hit") / "place"
    moments = [(part + rng.random()) / MOMENTS * took for part in range(MOMENTS)]
    signals = rng.sample([SIGNALS[at % len(SIGNALS)] for at in range(MOMENTS)], MOMENTS)
    return [
        attempt(command, environment, folder, when, expected)
        for when in zip(moments, signals, strict=True)
    ]


def test_signal_ends_command_with_its_exit_code_and_no_traceback(attempts: list[Attempt]) -> None:
    odd = {
        each.when: (each.done.code, each.done.err)
        for each in attempts
        # Python itself no longer listens once it has done all and is about to leave.
        if each.done.code not in (0, CODES[signal.Signals(each.number)], -each.number)
        # A worker whose parent was killed while it started has words of Python's own for that.
        or (each.number != signal.SIGKILL and "Traceback" in each.done.err)
    }
    assert odd == {}
    assert sum(each.done.code != 0 for each in attempts) > 0.6 * len(attempts)


def test_repeated_command_gives_the_same_result(attempts: list[Attempt]) -> None:
    wrong = {each.when: each.again.err for each in attempts if not each.same}
    assert wrong == {}


def test_no_incomplete_file_process_or_lock_is_left(attempts: list[Attempt]) -> None:
    assert {each.when: each.wrong for each in attempts if each.wrong} == {}


def test_finished_steps_are_not_repeated(attempts: list[Attempt]) -> None:
    repeated = {
        each.when: [
            step
            for step in each.done.steps
            if step.split()[0] in STORED and not each.again.steps.get(step, True)
        ]
        for each in attempts
    }
    assert {when: steps for when, steps in repeated.items() if steps} == {}
