"""Cached results are complete or absent, also with two writers and after kill -9."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from qconvert.core.atomic import TEMPORARY_PREFIX
from qconvert.core.cache import Cache, JsonCodec, cached_step, open_default

KEY = {"model": "abc", "opset": "20"}


def write_result(folder: Path, text: str) -> None:
    (folder / "result.txt").write_text(text)


def fill(results: Cache, text: str, step: str = "step") -> Path:
    return results.get_or_make(step, KEY, lambda folder: write_result(folder, text))[0]


def test_result_is_computed_once_per_key(tmp_path: Path) -> None:
    results, calls = Cache(tmp_path), []

    def make(folder: Path) -> None:
        calls.append(folder)
        write_result(folder, "done")

    first, first_hit = results.get_or_make("step", KEY, make)
    second, second_hit = results.get_or_make("step", dict(reversed(KEY.items())), make)
    assert (first_hit, second_hit, len(calls)) == (False, True, 1)
    assert second == first
    assert (first / "result.txt").read_text() == "done"
    assert json.loads((first / "recipe.json").read_text()) == KEY
    assert not results.get_or_make("step", {**KEY, "opset": "21"}, make)[1]


def test_failed_work_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        write_result(folder, "half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Cache(tmp_path).get_or_make("step", KEY, make)
    assert list((tmp_path / "step").iterdir()) == []


def test_second_writer_uses_the_result_of_the_first(tmp_path: Path) -> None:
    results = Cache(tmp_path)

    def make_slowly(folder: Path) -> None:
        write_result(folder, "slow")
        fill(results, "fast")

    folder = results.get_or_make("step", KEY, make_slowly)[0]
    assert (folder / "result.txt").read_text() == "fast"
    assert [entry.path for entry in results.entries()] == [folder]


WRITER = """
import sys, time
from pathlib import Path
from qconvert.core.cache import Cache

def make(folder):
    (folder / "half.txt").write_text("half")
    print("started", flush=True)
    time.sleep(60)

Cache(Path(sys.argv[1])).get_or_make("step", {"model": "abc", "opset": "20"}, make)
"""


def test_killed_process_leaves_no_result(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    results = Cache(tmp_path)
    assert list(results.entries()) == []
    folder = fill(results, "done")
    assert not (folder / "half.txt").exists()
    assert list((tmp_path / "step").iterdir()) == [folder]


@pytest.mark.slow
def test_four_processes_agree_on_one_result(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom qconvert.core.cache import Cache\n"
        "result = Cache(Path(sys.argv[1])).get_or_make('step', {'a': 'b'},"
        " lambda folder: (folder / 'x').write_text('1') and None)\nprint(result[0])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(paths) == len(list((tmp_path / "step").iterdir())) == 1


def test_damaged_result_is_recomputed(tmp_path: Path) -> None:
    results = Cache(tmp_path)
    folder = fill(results, "good")
    for damage in (
        lambda: write_result(folder, "bad!"),
        (folder / "result.txt").unlink,
        (folder / "content.json").unlink,
        lambda: (folder / "more.txt").write_text("more"),
    ):
        damage()
        repaired = results.get_or_make("step", KEY, lambda new: write_result(new, "good"))
        assert repaired == (folder, False)
        assert (folder / "result.txt").read_text() == "good"


def test_clearing_one_step_keeps_the_others(tmp_path: Path) -> None:
    results = Cache(tmp_path)
    for step in ("export", "prepare"):
        fill(results, "12345", step)
    (cleared,) = results.clear("export")
    assert cleared.step == "export"
    assert cleared.size_bytes > 5
    assert [entry.step for entry in results.entries()] == ["prepare"]
    assert results.clear()
    assert list(results.entries()) == []


def test_clearing_deletes_only_results(tmp_path: Path) -> None:
    carrot_cake = tmp_path / "cakes" / "carrot"
    carrot_cake.mkdir(parents=True)
    (carrot_cake / "recipe.json").write_text('{"carrots": "5"}')
    (tmp_path / "cakes" / ".draft-notes").mkdir()
    results = Cache(tmp_path)
    assert results.clear() == []
    folder = fill(results, "x")
    (folder / "recipe.json").unlink()
    assert [entry.path for entry in results.clear()] == [folder]
    assert (carrot_cake / "recipe.json").exists()
    assert (tmp_path / "cakes" / ".draft-notes").exists()


def test_environment_variable_sets_the_root_and_opening_removes_abandoned_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("QCONVERT_CACHE_DIR", raising=False)
    assert "qconvert" in str(open_default().root)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(tmp_path))
    folder = fill(open_default(), "x")
    assert (tmp_path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f0688")
    (folder.parent / f"{TEMPORARY_PREFIX}killed").mkdir()
    open_default()
    assert list(folder.parent.iterdir()) == [folder]


# --- steps with a value ---


@dataclass(frozen=True)
class Score:
    name: str
    values: tuple[float, ...]


CODEC = JsonCodec("scores.json", dict[str, Score])
SCORES = {"int8": Score("top1", (0.1, math.inf, math.nan))}


def test_second_call_with_the_same_key_is_a_hit_with_an_equal_value(tmp_path: Path) -> None:
    (first, is_first_hit), (second, is_second_hit) = (
        cached_step(Cache(tmp_path), "evaluate", {"name": "a"}, compute, CODEC)
        for compute in (lambda: SCORES, dict)
    )
    assert (is_first_hit, is_second_hit) == (False, True)
    # Infinities and NaN too, which are not equal to themselves.
    assert str(first) == str(second) == str(SCORES)
