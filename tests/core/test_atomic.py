"""Temporary folders are locked by their process, and removed after it was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qconvert.core.atomic import (
    ABANDONED_SECONDS,
    RESUMABLE_PREFIX,
    TEMPORARY_PREFIX,
    lock_folder,
    remove_abandoned,
    resumable_folder,
    temporary_folder,
)

WORKER = """
import sys
from pathlib import Path
from qconvert.core import atomic

with atomic.{function}(Path(sys.argv[1]), *sys.argv[2:]) as folder:
    (folder / "half.txt").write_text("half")
    print(folder, flush=True)
    sys.stdin.readline()
"""
LATER, EARLIER = ABANDONED_SECONDS + 60, -ABANDONED_SECONDS - 60


@contextmanager
def worker(function: str, *args: object) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Run another process in the folder that a function opens."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(function=function), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        yield Path(process.stdout.readline().strip()), process
        process.kill()


def set_time(folder: Path, seconds: float) -> None:
    """Set the date of a folder and its files to some seconds from now."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() + seconds, time.time() + seconds))


def test_temporary_folder_is_removed_on_success_and_on_error(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "new").write_text("new")
        (folder / "new").rename(tmp_path / "new")
    with pytest.raises(ValueError, match="no"), temporary_folder(tmp_path):
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("seconds", [0, LATER, EARLIER])
def test_locked_temporary_folder_is_kept_whatever_its_date(tmp_path: Path, seconds: float) -> None:
    with worker("temporary_folder", tmp_path) as (folder, process):
        set_time(folder, seconds)
        remove_abandoned(tmp_path)
        assert (folder / "half.txt").exists()
        process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0, LATER, EARLIER])
def test_temporary_folder_of_a_killed_process_is_removed_whatever_its_date(
    tmp_path: Path, seconds: float
) -> None:
    with worker("temporary_folder", tmp_path) as (folder, process):
        process.send_signal(signal.SIGKILL)
        process.wait()
        set_time(folder, seconds)
    with temporary_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_resumable_folder_of_a_killed_process_is_continued_then_removed(tmp_path: Path) -> None:
    with worker("resumable_folder", tmp_path, "work") as (folder, process):
        process.send_signal(signal.SIGKILL)
        process.wait()
    remove_abandoned(tmp_path)
    with resumable_folder(tmp_path, "work") as continued:
        assert continued == folder
        assert (continued / "half.txt").read_text() == "half"
    assert list(tmp_path.iterdir()) == []


def test_locked_resumable_folder_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    with worker("resumable_folder", tmp_path, "work") as (folder, process):
        set_time(folder, EARLIER)
        with resumable_folder(tmp_path, "work") as own:
            assert own.name.startswith(TEMPORARY_PREFIX)
            assert list(own.iterdir()) == []
        process.communicate("go on\n", timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [LATER, EARLIER])
def test_resumable_folder_unused_for_a_day_is_removed(tmp_path: Path, seconds: float) -> None:
    old, fresh = tmp_path / f"{RESUMABLE_PREFIX}old", tmp_path / f"{RESUMABLE_PREFIX}fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "half.txt").write_text("half")
        set_time(folder, seconds)
    (fresh / "half.txt").write_text("half")  # just now
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [fresh.name]


def test_without_locks_only_old_temporary_folders_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")  # as NFS does for folders

    monkeypatch.setattr(fcntl, "flock", refuse)
    old, fresh = tmp_path / f"{TEMPORARY_PREFIX}old", tmp_path / f"{TEMPORARY_PREFIX}fresh"
    for folder in (old, fresh):
        folder.mkdir()
    set_time(old, EARLIER)
    with lock_folder(tmp_path) as locked, temporary_folder(tmp_path) as own:
        assert locked is None
        assert {*tmp_path.iterdir()} == {fresh, own}
