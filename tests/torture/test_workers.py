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
from tests.torture.environment import Environment, Finished, ended

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

SPLIT = next(command for command in COMMANDS if command.name == "calibrate in workers")
MB = 1 << 20
THEIR_LAST = ("OpenBLAS error", "cannot allocate memory for thread-local data")
Disturbance = Callable[[int], None]


def workers(parent: int) -> list[int]:
    """Return the worker processes of a command."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    results = []
    for child in children:
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                results.append(int(child))
    return results


def disturb(child: subprocess.Popen[str], disturbance: Disturbance) -> Finished:
    """Wait for both workers of a command, and do something to the second."""
    while len(results := workers(child.pid)) < 2:
        assert child.poll() is None, ended(child).err
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        disturbance(results[1])
    return ended(child)


def kill(pid: int) -> None:
    """End a process as the kernel does when there is no memory left."""
    os.kill(pid, signal.SIGKILL)


def limit_memory(megabytes: int) -> Disturbance:
    """Return what leaves a process so much memory."""
    room = (megabytes * MB, megabytes * MB)
    return lambda pid: resource.prlimit(pid, resource.RLIMIT_AS, room) and None


def require_clear_error(done: Finished) -> None:
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    # What a library writes about itself is not ours: "OpenBLAS error: ...".
    assert [line[:7] for line in done.err.splitlines()].count("error: ") == 1
    assert "\n\nhint: " in done.err


DISTURBANCES = {"killed": kill, **{f"left {room} MB": limit_memory(room) for room in (50, 180)}}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_dead_worker_is_reported_and_command_resumes(
    disturbance: str, environment: Environment, tmp_path: Path
) -> None:
    baseline, folder = tmp_path / "calm", tmp_path / "place"
    baseline.mkdir()
    folder.mkdir()
    assert SPLIT.run(environment, baseline).code == 0
    done = disturb(SPLIT.start(environment, folder), DISTURBANCES[disturbance])
    require_clear_error(done)
    assert done.said == "a worker process was kill, probably because memory ran out"
    assert leftover_processes(folder) == []
    assert not (folder / SPLIT.makes).exists()
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
    done = ended(tight)
    # OpenBLAS and the C library end the process themselves.
    if done.code and not any(words in done.err for words in THEIR_LAST):
        require_clear_error(done)
    assert command.run(environment, tmp_path).code == 0
    assert leftover_files(tmp_path) == []
