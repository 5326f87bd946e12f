"""A worker that is killed or runs out of memory: a clear error, and the command resumes."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.commands import COMMANDS, Command, leftover_files, leftover_processes
from tests.torture.environment import Environment, Finished, wait_for

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

SPLIT = next(command for command in COMMANDS if command.name == "calibrate in workers")
MB = 1 << 20
LIBRARY_ERRORS = ("OpenBLAS error", "cannot allocate memory for thread-local data")
Disturbance = Callable[[int], None]


def workers(parent: int) -> list[int]:
    """Return the worker processes of a command."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    pids = []
    for child in children:
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                pids.append(int(child))
    return pids


def disturb(child: subprocess.Popen[str], disturbance: Disturbance) -> Finished:
    """Wait for both workers of a command, and disturb the second."""
    while len(pids := workers(child.pid)) < 2:
        assert child.poll() is None, wait_for(child).err
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        disturbance(pids[1])
    return wait_for(child)


def kill(pid: int) -> None:
    """End a process as the kernel does when there is no memory left."""
    os.kill(pid, signal.SIGKILL)


def limit_memory(megabytes: int) -> Disturbance:
    """Return a disturbance that limits the memory of a process."""
    room = (megabytes * MB, megabytes * MB)
    return lambda pid: resource.prlimit(pid, resource.RLIMIT_AS, room) and None


def require_clear_error(outcome: Finished) -> None:
    assert outcome.code == 3, outcome.err
    assert "Traceback" not in outcome.err
    # Errors that a library prints do not count, such as "OpenBLAS error: ...".
    assert [line[:7] for line in outcome.err.splitlines()].count("error: ") == 1
    assert "\n\nhint: " in outcome.err


DISTURBANCES = {"killed": kill, **{f"left {room} MB": limit_memory(room) for room in (50, 180)}}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_dead_worker_is_reported_and_command_resumes(
    disturbance: str, environment: Environment, tmp_path: Path
) -> None:
    baseline, folder = tmp_path / "calm", tmp_path / "place"
    baseline.mkdir()
    folder.mkdir()
    assert SPLIT.run(environment, baseline).code == 0
    outcome = disturb(SPLIT.start(environment, folder), DISTURBANCES[disturbance])
    require_clear_error(outcome)
    assert outcome.error_message == "a worker process was killed, probably because memory ran out"
    assert leftover_processes(folder) == []
    assert not (folder / SPLIT.output).exists()
    assert SPLIT.run(environment, folder).code == 0
    assert SPLIT.stable_facts(folder) == SPLIT.stable_facts(baseline)
    assert leftover_files(folder) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
@pytest.mark.parametrize("room", [140, 180, 210, 240, 270, 300, 330])
def test_command_with_little_memory_finishes_or_reports_it(
    room: int, command: Command, environment: Environment, tmp_path: Path
) -> None:
    around = ["sh", "-c", 'ulimit -v "$1"; shift; exec "$@"', "sh", str(room * 1024)]
    tight = environment.start(
        command.args(tmp_path), tmp_path / "cache", around, OMP_NUM_THREADS="1"
    )
    outcome = wait_for(tight)
    # OpenBLAS and the C library end the process without an error of ours.
    if outcome.code and not any(words in outcome.err for words in LIBRARY_ERRORS):
        require_clear_error(outcome)
    assert command.run(environment, tmp_path).code == 0
    assert leftover_files(tmp_path) == []
