"""Concurrent builds on one cache and in one run folder do not harm each other."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.torture.environment import ALL, FEW, Environment, Finished, Interruption, wait_for
from tests.torture.run_content import incomplete_parts, leftovers, stable_facts, stable_report

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

ROUNDS = 2
RENAMES = ("os.rename",)
REFUSED = (2, 3)

# Quick steps with the same keys in the same order; `sys.argv` holds the cache and a seed.
WORKER = """
import random, sys, time
from pathlib import Path
from qconvert.core.cache import Cache

cache, rng = Cache(Path(sys.argv[1])), random.Random(int(sys.argv[2]))

def make(folder):
    (folder / "result.txt").write_text("done")
    time.sleep(rng.random() / 250)

for number in range(300):
    WORK
"""
GET = """result = cache.get_or_make("step", {"number": str(number)}, make)
    assert (result[0] / "result.txt").read_text() == "done", number"""
RESUMABLE = """with cache.resumable("step", {"number": str(number)}) as folder:
        make(folder)"""


def run_concurrently(
    environment: Environment, runs: Sequence[Path], cache: Path, options: Sequence[str] = ALL
) -> list[Finished]:
    """Start builds at the same moment and wait for all of them."""
    children = [
        environment.start(["-m", "qconvert", *environment.args(run, options)], cache)
        for run in runs
    ]
    return [wait_for(child) for child in children]


def run_overtaken(
    environment: Environment, runs: tuple[Path, Path], cache: Path, at: int
) -> tuple[Finished, Finished]:
    """Stop a build right before a rename, run another to its end, and resume the first."""
    child = environment.start_interrupted(
        runs[0], cache, Interruption(at, signal.SIGSTOP, RENAMES), FEW
    )
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        other = environment.build(runs[1], cache, FEW)
    finally:
        child.send_signal(signal.SIGCONT)
    return wait_for(child), other


def is_clear_refusal(outcome: Finished) -> bool:
    """Return whether a command refused its work with an error message and a hint."""
    return outcome.code in REFUSED and bool(outcome.error_message) and "\nhint: " in outcome.err


def test_two_builds_on_one_empty_cache_give_the_same_report(
    environment: Environment, tmp_path: Path
) -> None:
    for number in range(ROUNDS):
        runs = [tmp_path / f"{number}-{name}" for name in ("one", "two")]
        outcomes = run_concurrently(environment, runs, tmp_path / f"{number}-cache")
        assert [outcome.code for outcome in outcomes] == [0, 0], [
            outcome.err for outcome in outcomes
        ]
        assert [incomplete_parts(run) + leftovers(run) for run in runs] == [[], []]
        assert stable_report(runs[0]) == stable_report(runs[1])
        assert stable_facts(runs[0]) == stable_facts(runs[1])


def test_eight_builds_on_one_empty_cache_give_the_same_report(
    environment: Environment, tmp_path: Path
) -> None:
    runs, cache = [tmp_path / f"run-{number}" for number in range(8)], tmp_path / "cache"
    outcomes = run_concurrently(environment, runs, cache, FEW)
    assert [outcome.code for outcome in outcomes] == [0] * 8, [outcome.err for outcome in outcomes]
    assert [incomplete_parts(run) + leftovers(run) for run in runs] == [[]] * 8
    assert [stable_facts(run) for run in runs] == [stable_facts(runs[0])] * 8
    assert list(cache.rglob(".*")) == []


def test_concurrent_builds_in_one_folder_succeed_or_report_the_lock(
    environment: Environment, tmp_path: Path
) -> None:
    for number in range(ROUNDS):
        run = tmp_path / f"{number}-run"
        outcomes = run_concurrently(environment, [run, run], tmp_path / f"{number}-cache")
        assert 0 in [outcome.code for outcome in outcomes], [outcome.err for outcome in outcomes]
        assert all(outcome.code == 0 or is_clear_refusal(outcome) for outcome in outcomes)
        assert incomplete_parts(run) + leftovers(run) == []


def test_build_overtaken_before_rename_in_one_folder_succeeds_or_is_refused(
    environment: Environment, tmp_path: Path
) -> None:
    cache, baseline = tmp_path / "cache", tmp_path / "calm"
    assert environment.build(baseline, cache, FEW).code == 0
    expected, wrong = stable_facts(baseline), {}
    for at in range(1, environment.changes(tmp_path / "counted", cache, FEW, RENAMES) + 1):
        run = tmp_path / f"run-{at}"
        first, second = run_overtaken(environment, (run, run), cache, at)
        both = [outcome.code == 0 or is_clear_refusal(outcome) for outcome in (first, second)]
        if 0 not in (first.code, second.code) or not all(both):
            wrong[at] = [first.err[-600:], second.err[-600:]]
        elif incomplete_parts(run) + leftovers(run) or stable_facts(run) != expected:
            wrong[at] = [*incomplete_parts(run), *leftovers(run), "other facts"]
    assert wrong == {}


def test_build_overtaken_before_rename_in_one_cache_gives_same_result(
    environment: Environment, tmp_path: Path
) -> None:
    renames = environment.changes(tmp_path / "calm", tmp_path / "calm-cache", FEW, RENAMES)
    expected = stable_facts(tmp_path / "calm")
    for at in range(1, renames + 1, 3):
        runs, cache = (tmp_path / f"one-{at}", tmp_path / f"two-{at}"), tmp_path / f"cache-{at}"
        first, second = run_overtaken(environment, runs, cache, at)
        assert (first.code, second.code) == (0, 0), (at, first.err, second.err)
        assert [stable_facts(run) for run in runs] == [expected, expected], at
        assert [incomplete_parts(run) + leftovers(run) for run in runs] == [[], []], at
        shutil.rmtree(cache)


@pytest.mark.parametrize("work", [GET, RESUMABLE], ids=["get_or_make", "resumable"])
def test_four_processes_race_through_one_cache(
    work: str, environment: Environment, tmp_path: Path
) -> None:
    script = WORKER.replace("WORK", work)
    children: list[subprocess.Popen[str]] = [
        environment.start(["-c", script, str(tmp_path / "store"), str(seed)], tmp_path / "unused")
        for seed in range(4)
    ]
    outcomes = [wait_for(child) for child in children]
    assert [outcome.err.splitlines()[-1:] for outcome in outcomes if outcome.code] == []
