"""The store: whole or not at all, found by what made it, safe with two writers and kill -9."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qconvert.core import atomic, cache
from qconvert.core.atomic import TEMPORARY_PREFIX
from qconvert.core.cache import Cache, open_default

RECIPE = {"model": "abc", "opset": "20"}


def put(folder: Path, text: str) -> None:
    (folder / "result.txt").write_text(text)


def test_work_is_done_once_and_found_again(tmp_path: Path) -> None:
    store, calls = Cache(tmp_path), []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "result.txt").write_text("done")

    first = store.get_or_make("step", RECIPE, make)
    assert not first.hit
    again = store.get_or_make("step", dict(reversed(RECIPE.items())), make)
    assert (again.path, again.hit) == (first.path, True)
    home = first.path
    assert len(calls) == 1
    assert (home / "result.txt").read_text() == "done"
    assert json.loads((home / "recipe.json").read_text()) == RECIPE
    assert store.find("step", RECIPE) == home
    assert store.find("step", {**RECIPE, "opset": "21"}) is None


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = Cache(tmp_path)

    def make(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.get_or_make("step", RECIPE, make)
    assert store.find("step", RECIPE) is None
    assert list((tmp_path / "step").iterdir()) == []


def test_the_second_of_two_writers_takes_what_the_first_finished(tmp_path: Path) -> None:
    store = Cache(tmp_path)

    def slow(folder: Path) -> None:
        (folder / "result.txt").write_text("slow")
        store.get_or_make("step", RECIPE, lambda inner: put(inner, "fast"))

    home = store.get_or_make("step", RECIPE, slow).path
    assert (home / "result.txt").read_text() == "fast"
    assert [entry.path for entry in store.entries()] == [home]


WRITER = """
import sys, time
from pathlib import Path
from qconvert.core.cache import Store

def make(folder):
    (folder / "half.txt").write_text("half")
    print("started", flush=True)
    time.sleep(60)

Store(Path(sys.argv[1])).get("step", {"model": "abc"}, make)
"""


def test_what_another_finishes_at_the_last_moment_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    removed: list[Path] = []
    other = (
        Cache(tmp_path / "other")
        .get_or_make("step", RECIPE, lambda folder: put(folder, "other"))
        .path
    )
    is_whole = cache._is_intact

    def looked(home: Path) -> bool:
        found = is_whole(home)
        looks.append(home)
        if len(looks) == 2:  # the work is done, and its place was still free
            other.rename(home)
        return found

    monkeypatch.setattr(cache, "_is_intact", looked)
    monkeypatch.setattr(atomic, "remove_folder", removed.append)
    found = Cache(tmp_path / "here").get_or_make("step", RECIPE, lambda folder: put(folder, "ours"))
    assert (found.path / "result.txt").is_file()
    assert removed == []


def test_kill_9_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "started\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    store = Cache(tmp_path)
    assert list(store.entries()) == []
    assert store.find("step", {"model": "abc"}) is None
    home = store.get_or_make("step", {"model": "abc"}, lambda folder: (folder / "ok").touch()).path
    assert (home / "ok").exists()
    assert not (home / "half.txt").exists()
    assert [path.name for path in (tmp_path / "step").iterdir()] == [home.name]


def test_eight_processes_agree_on_one_result(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom qconvert.core.cache import Store\n"
        "home = Store(Path(sys.argv[1])).get('step', {'a': 'b'},"
        " lambda folder: (folder / 'x').write_text('1') and None)\nprint(home.path)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0] * 8
    assert len(answers) == 1
    assert [path.name for path in (tmp_path / "step").glob(".qconvert-draft-*")] == []


def test_clearing_one_step_leaves_the_others(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    for step in ("export", "prepare"):
        store.get_or_make(step, RECIPE, lambda folder: put(folder, "12345"))
    (gone,) = store.clear("export")
    assert gone.step == "export"
    assert gone.size_bytes > 5
    assert [entry.step for entry in store.entries()] == ["prepare"]
    assert store.clear()
    assert list(store.entries()) == []


def test_damaged_work_is_made_again(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    home = store.get_or_make("step", RECIPE, lambda folder: put(folder, "good")).path
    for damage in (
        lambda: (home / "result.txt").write_text("bad!"),
        (home / "result.txt").unlink,
        (home / "content.json").unlink,
        lambda: (home / "more.txt").write_text("more"),
    ):
        damage()
        assert store.find("step", RECIPE) is None
        found = store.get_or_make("step", RECIPE, lambda folder: put(folder, "good"))
        assert (found.path, found.hit) == (home, False)
        assert (home / "result.txt").read_text() == "good"
        assert store.find("step", RECIPE) == home


def test_clearing_deletes_only_what_is_ours(tmp_path: Path) -> None:
    cakes = tmp_path / "cakes" / "carrot"
    cakes.mkdir(parents=True)
    (cakes / "recipe.json").write_text('{"carrots": "5"}')
    (tmp_path / "cakes" / ".draft-notes").mkdir()
    assert Cache(tmp_path).clear() == []
    store = Cache(tmp_path)
    home = store.get_or_make("step", RECIPE, lambda folder: put(folder, "x")).path
    (home / "recipe.json").unlink()
    assert [entry.path for entry in store.clear()] == [home]
    assert (cakes / "recipe.json").exists()
    assert (tmp_path / "cakes" / ".draft-notes").exists()


def test_the_store_marks_itself_as_a_cache(tmp_path: Path) -> None:
    Cache(tmp_path).get_or_make("step", RECIPE, lambda folder: None)
    assert (tmp_path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f0688")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(tmp_path / "here"))
    assert open_default().root == tmp_path / "here"
    monkeypatch.delenv("QCONVERT_CACHE_DIR")
    assert "qconvert" in str(open_default().root)


def test_opening_the_store_sweeps_what_a_killed_process_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(tmp_path))
    home = open_default().get_or_make("step", RECIPE, lambda folder: put(folder, "x")).path
    (home.parent / f"{TEMPORARY_PREFIX}killed").mkdir()
    open_default()
    assert [path.name for path in home.parent.iterdir()] == [home.name]
