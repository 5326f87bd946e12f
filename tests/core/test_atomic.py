"""Drafts: whoever works in one holds it, and what a killed process leaves goes at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qconvert.core import atomic
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
from qconvert import drafts

with drafts.{work} as place:
    (place / "half.txt").write_text("half")
    print(place, flush=True)
    sys.stdin.readline()
"""
LATER, EARLIER = ABANDONED_SECONDS + 60, -ABANDONED_SECONDS - 60


@contextmanager
def working(work: str) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Let another process work in a draft or at a bench."""
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(work=work)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child:
        yield Path(child.stdout.readline().strip()), child
        child.kill()


def date(folder: Path, seconds: float) -> None:
    """Date a folder and its files so many seconds from now."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() + seconds, time.time() + seconds))


def test_a_draft_goes_when_its_block_ends_however_it_ends(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as place:
        (place / "new").write_text("new")
        (place / "new").rename(tmp_path / "new")
    with pytest.raises(ValueError, match="no"), temporary_folder(tmp_path):
        raise ValueError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("seconds", [0, LATER, EARLIER])
def test_a_draft_at_work_is_not_swept_whatever_the_clock_says(
    tmp_path: Path, seconds: float
) -> None:
    with working(f"draft(Path({str(tmp_path)!r}))") as (place, child):
        date(place, seconds)
        remove_abandoned(tmp_path)
        assert (place / "half.txt").exists()
        child.communicate("go on\n", timeout=60)
    assert child.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0, LATER, EARLIER])
def test_a_draft_of_a_killed_process_goes_with_the_next_one_whatever_the_clock_says(
    tmp_path: Path, seconds: float
) -> None:
    with working(f"draft(Path({str(tmp_path)!r}))") as (place, child):
        child.send_signal(signal.SIGKILL)
        child.wait()
        date(place, seconds)
    with temporary_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_a_bench_of_a_killed_process_is_found_again_and_goes_in_the_end(tmp_path: Path) -> None:
    with working(f"bench(Path({str(tmp_path)!r}), 'work')") as (place, child):
        child.send_signal(signal.SIGKILL)
        child.wait()
    remove_abandoned(tmp_path)
    with resumable_folder(tmp_path, "work") as found:
        assert found == place
        assert (found / "half.txt").read_text() == "half"
    assert list(tmp_path.iterdir()) == []


def test_at_a_bench_that_another_process_holds_there_is_a_draft(tmp_path: Path) -> None:
    with working(f"bench(Path({str(tmp_path)!r}), 'work')") as (place, child):
        date(place, EARLIER)
        with resumable_folder(tmp_path, "work") as own:
            assert own.name.startswith(TEMPORARY_PREFIX)
            assert list(own.iterdir()) == []
        child.communicate("go on\n", timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [LATER, EARLIER])
def test_a_bench_that_is_a_day_off_is_swept(tmp_path: Path, seconds: float) -> None:
    old, fresh = tmp_path / f"{RESUMABLE_PREFIX}old", tmp_path / f"{RESUMABLE_PREFIX}fresh"
    for place in (old, fresh):
        place.mkdir()
        (place / "half.txt").write_text("half")
        date(place, seconds)
    (fresh / "half.txt").write_text("half")  # just now
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [fresh.name]


def test_where_there_are_no_locks_only_old_drafts_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, how: int) -> None:
        raise OSError(9, "Bad file descriptor")  # what NFS says of a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    old, fresh = tmp_path / f"{TEMPORARY_PREFIX}old", tmp_path / f"{TEMPORARY_PREFIX}fresh"
    for place in (old, fresh):
        place.mkdir()
    date(old, EARLIER)
    with lock_folder(tmp_path) as ours, atomic.temporary_folder(tmp_path) as own:
        assert ours is None
        assert {*tmp_path.iterdir()} == {fresh, own}


def test_a_folder_that_went_away_is_not_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock_folder(tmp_path / "gone"):
        pass
