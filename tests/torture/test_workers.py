"""A worker that is killed or runs out of memory: one sentence, nothing half, and it goes on."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.jobs import JOBS, Job, left_behind, orphans
from tests.torture.world import Done, World, ended

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

SPLIT = next(job for job in JOBS if job.name == "calibrate in workers")
MB = 1 << 20
THEIR_LAST = ("OpenBLAS error", "cannot allocate memory for thread-local data")
Strike = Callable[[int], None]


def workers(parent: int) -> list[int]:
    """Return the worker processes of a command."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = []
    for child in children:
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def struck(child: subprocess.Popen[str], strike: Strike) -> Done:
    """Wait for both workers of a command, and do something to the second."""
    while len(found := workers(child.pid)) < 2:
        assert child.poll() is None, ended(child).err
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        strike(found[1])
    return ended(child)


def killed(pid: int) -> None:
    """End a process as the kernel does when there is no memory left."""
    os.kill(pid, signal.SIGKILL)


def limited(megabytes: int) -> Strike:
    """Return what leaves a process so much memory."""
    room = (megabytes * MB, megabytes * MB)
    return lambda pid: resource.prlimit(pid, resource.RLIMIT_AS, room) and None


def require_told(done: Done) -> None:
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    # What a library writes about itself is not ours: "OpenBLAS error: ...".
    assert [line[:7] for line in done.err.splitlines()].count("error: ") == 1
    assert "\n\nhint: " in done.err


STRIKES = {"killed": killed, **{f"left {room} MB": limited(room) for room in (50, 180)}}


@pytest.mark.parametrize("strike", STRIKES)
def test_a_worker_that_dies_is_told_and_the_same_command_goes_on(
    strike: str, world: World, tmp_path: Path
) -> None:
    calm, place = tmp_path / "calm", tmp_path / "place"
    for folder in (calm, place):
        folder.mkdir()
    assert SPLIT.run(world, calm).code == 0
    done = struck(SPLIT.start(world, place), STRIKES[strike])
    require_told(done)
    assert done.said == "a worker process was killed, probably because memory ran out"
    assert orphans(place) == []
    assert not (place / SPLIT.makes).exists()
    assert SPLIT.run(world, place).code == 0
    assert SPLIT.facts(place) == SPLIT.facts(calm)
    assert left_behind(place) == []


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
@pytest.mark.parametrize("room", [140, 180, 210, 240, 270, 300, 330])
def test_a_command_with_too_little_memory_is_told_or_done(
    room: int, job: Job, world: World, tmp_path: Path
) -> None:
    around = ["sh", "-c", 'ulimit -v "$1"; shift; exec "$@"', "sh", str(room * 1024)]
    tight = world.start(job.args(tmp_path), tmp_path / "cache", around, OMP_NUM_THREADS="1")
    done = ended(tight)
    # OpenBLAS and the C library end the process themselves.
    if done.code and not any(words in done.err for words in THEIR_LAST):
        require_told(done)
    assert job.run(world, tmp_path).code == 0
    assert left_behind(tmp_path) == []
