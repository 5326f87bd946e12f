"""Several builds at once, on one cache and on one run folder: none harms another."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.torture.whole import facts, halves, leftovers, timeless
from tests.torture.world import ALL, FEW, Done, Stumble, World, ended

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

ROUNDS = 2
RENAMES = ("os.rename",)
REFUSED = (2, 3)

# Quick work on the same recipes in the same order; `sys.argv` has the store and a seed.
WORKER = """
import random, sys, time
from pathlib import Path
from qconvert.core.cache import Store

store, chance = Store(Path(sys.argv[1])), random.Random(int(sys.argv[2]))

def make(folder):
    (folder / "result.txt").write_text("done")
    time.sleep(chance.random() / 250)

for number in range(300):
    WORK
"""
GET = """found = store.get("step", {"number": str(number)}, make)
    assert (found.path / "result.txt").read_text() == "done", number"""
BENCH = """with store.bench("step", {"number": str(number)}) as bench:
        make(bench)"""


def together(
    world: World, runs: Sequence[Path], cache: Path, chosen: Sequence[str] = ALL
) -> list[Done]:
    """Start builds at the same moment and wait for all of them."""
    children = [world.start(["-m", "qconvert", *world.args(run, chosen)], cache) for run in runs]
    return [ended(child) for child in children]


def overtaken(world: World, runs: tuple[Path, Path], cache: Path, at: int) -> tuple[Done, Done]:
    """Stop a build right before a rename, let another run to its end, and let the first go on."""
    child = world.stumbling(runs[0], cache, Stumble(at, signal.SIGSTOP, RENAMES), FEW)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        other = world.build(runs[1], cache, FEW)
    finally:
        child.send_signal(signal.SIGCONT)
    return ended(child), other


def refused_in_words(done: Done) -> bool:
    """Return whether a command said in a sentence why it did not do its work."""
    return done.code in REFUSED and bool(done.said) and "\nhint: " in done.err


def test_two_builds_on_one_empty_cache_give_the_same_report(world: World, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        runs = [tmp_path / f"{number}-{name}" for name in ("one", "two")]
        done = together(world, runs, tmp_path / f"{number}-cache")
        assert [each.code for each in done] == [0, 0], [each.err for each in done]
        assert [halves(run) + leftovers(run) for run in runs] == [[], []]
        assert timeless(runs[0]) == timeless(runs[1])
        assert facts(runs[0]) == facts(runs[1])


def test_eight_builds_on_one_empty_cache_give_the_same_report(world: World, tmp_path: Path) -> None:
    runs, cache = [tmp_path / f"run-{number}" for number in range(8)], tmp_path / "cache"
    done = together(world, runs, cache, FEW)
    assert [each.code for each in done] == [0] * 8, [each.err for each in done]
    assert [halves(run) + leftovers(run) for run in runs] == [[]] * 8
    assert [facts(run) for run in runs] == [facts(runs[0])] * 8
    assert list(cache.rglob(".*")) == []


def test_of_two_builds_in_one_folder_one_succeeds_and_the_other_does_or_says_why_not(
    world: World, tmp_path: Path
) -> None:
    for number in range(ROUNDS):
        run = tmp_path / f"{number}-run"
        done = together(world, [run, run], tmp_path / f"{number}-cache")
        assert 0 in [each.code for each in done], [each.err for each in done]
        assert all(each.code == 0 or refused_in_words(each) for each in done)
        assert halves(run) + leftovers(run) == []


def test_a_build_that_another_overtakes_before_any_rename_in_one_folder(
    world: World, tmp_path: Path
) -> None:
    cache, calm = tmp_path / "cache", tmp_path / "calm"
    assert world.build(calm, cache, FEW).code == 0
    wanted, wrong = facts(calm), {}
    for at in range(1, world.changes(tmp_path / "counted", cache, FEW, RENAMES) + 1):
        run = tmp_path / f"run-{at}"
        first, second = overtaken(world, (run, run), cache, at)
        both = [each.code == 0 or refused_in_words(each) for each in (first, second)]
        if 0 not in (first.code, second.code) or not all(both):
            wrong[at] = [first.err[-600:], second.err[-600:]]
        elif halves(run) + leftovers(run) or facts(run) != wanted:
            wrong[at] = [*halves(run), *leftovers(run), "other facts"]
    assert wrong == {}


def test_a_build_that_another_overtakes_before_any_rename_in_one_cache(
    world: World, tmp_path: Path
) -> None:
    renames = world.changes(tmp_path / "calm", tmp_path / "calm-cache", FEW, RENAMES)
    wanted = facts(tmp_path / "calm")
    for at in range(1, renames + 1, 3):
        runs, cache = (tmp_path / f"one-{at}", tmp_path / f"two-{at}"), tmp_path / f"cache-{at}"
        first, second = overtaken(world, runs, cache, at)
        assert (first.code, second.code) == (0, 0), (at, first.err, second.err)
        assert [facts(run) for run in runs] == [wanted, wanted], at
        assert [halves(run) + leftovers(run) for run in runs] == [[], []], at
        shutil.rmtree(cache)


@pytest.mark.parametrize("work", [GET, BENCH], ids=["get", "bench"])
def test_four_processes_that_race_through_one_store(
    work: str, world: World, tmp_path: Path
) -> None:
    script = WORKER.replace("WORK", work)
    children: list[subprocess.Popen[str]] = [
        world.start(["-c", script, str(tmp_path / "store"), str(seed)], tmp_path / "unused")
        for seed in range(4)
    ]
    done = [ended(child) for child in children]
    assert [each.err.splitlines()[-1:] for each in done if each.code] == []
