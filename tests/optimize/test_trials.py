"""Trials are lines that outlive a kill."""

import json
from pathlib import Path

import pytest

from qconvert.optimize.trials import TrialRecord, open_trials

FILE = Path("out/trials.jsonl")


def fails() -> TrialRecord:
    raise AssertionError("made again")


def test_a_trial_is_a_line_at_once_and_is_not_made_again() -> None:
    trials = open_trials(FILE, "us")
    assert trials.get_or_run("a", lambda: {"far": [0.1, float("inf")]}) == {
        "far": [0.1, float("inf")]
    }
    lines = [json.loads(line) for line in FILE.read_text().splitlines()]
    assert lines == [{"subject": "us"}, {"trial": "a", "far": [0.1, float("inf")]}]
    assert open_trials(FILE, "us").get_or_run("a", fails) == {"far": [0.1, float("inf")]}


def test_trials_of_another_subject_are_dropped() -> None:
    open_trials(FILE, "them").put("a", {"far": [1]})
    assert open_trials(FILE, "us").records == {}
    assert FILE.read_text() == '{"subject": "us"}\n'


@pytest.mark.parametrize("torn", ['{"trial": "b", "fa', '{"trial": "b"}x', "\x00\x00\x00"])
def test_a_line_that_was_not_finished_ends_what_is_taken(torn: str) -> None:
    open_trials(FILE, "us").put("a", {"far": [1]})
    with FILE.open("a") as file:
        file.write(torn)
    assert open_trials(FILE, "us").records == {"a": {"far": [1]}}
    open_trials(FILE, "us").put("b", {"far": [2]})
    assert set(open_trials(FILE, "us").records) == {"a", "b"}
