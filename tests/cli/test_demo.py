"""`qconvert demo`: the whole workflow with the installed files alone, and a command to copy."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qconvert.demo import demo_files
from tests.conftest import Outcome

Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo_files, "CALIBRATION_IMAGES", replace(demo_files.CALIBRATION_IMAGES, count=40)
    )
    monkeypatch.setattr(
        demo_files, "EVALUATION_IMAGES", replace(demo_files.EVALUATION_IMAGES, count=100)
    )


def shown(qconvert: Command, *more: str, code: int = 0) -> Outcome:
    outcome = qconvert("demo", "--seconds", "0.02", *more)
    assert outcome.code == code, outcome.err
    return outcome


def printed(outcome: Outcome) -> list[str]:
    """Return the words of the `qconvert build` that the demo printed."""
    match = re.search(r"^  (qconvert build .*?[^\\])$", outcome.err, re.MULTILINE | re.DOTALL)
    assert match is not None, outcome.err
    return shlex.split(match[1].replace("\\\n", " "))


@pytest.mark.long
def test_demo_builds_a_run_and_prints_a_command_that_repeats_it(qconvert: Command) -> None:
    Path("qconvert.toml").write_text("these = 'are settings of something else'\n")
    first = shown(qconvert)
    for title in ("Size\n", "Latency\n", "Accuracy, % of 100 images\n"):
        assert title in first.out
    assert Path(first.err.splitlines()[-1].removeprefix("report: ")).is_file()
    assert max(map(len, [*first.out.splitlines(), *first.err.splitlines()])) <= 80
    again = json.loads(require_stored(shown(qconvert, "--json")).out)
    assert [variant["name"] for variant in again["variants"]] == [
        "cpu-fp32",
        "cpu-fp16",
        "cpu-int8",
    ]
    for variant in again["variants"]:
        assert [latency["batch"] for latency in variant["latency"]] == [1, 8]
        assert variant["accuracy"]["top1"] > 90
    Path("qconvert.toml").unlink()
    copied = qconvert(*printed(first)[1:])
    assert require_stored(copied).out == first.out


def require_stored(outcome: Outcome) -> Outcome:
    """Require that every step except reading the model is cached."""
    assert outcome.code == 0, outcome.err
    steps = [line for line in outcome.err.splitlines() if "✓" in line and "✓ load" not in line]
    assert len(steps) > 5
    assert all("cached, " in line for line in steps), outcome.err
    return outcome


def test_demo_refuses_a_folder_with_other_files(qconvert: Command) -> None:
    Path("mine/evaluation").mkdir(parents=True)
    Path("mine/evaluation/picture.jpg").write_bytes(b"mine")
    refused = shown(qconvert, "-o", "mine", code=2)
    assert "`mine` holds other files" in refused.err
    assert [file.name for file in Path("mine").rglob("*")] == ["evaluation", "picture.jpg"]


def test_demo_folder_of_another_version_is_refused(qconvert: Command) -> None:
    Path("older").mkdir()
    Path("older/demo.json").write_text("{}")
    assert "`older` holds the demo of another version" in shown(qconvert, "-o", "older", code=2).err


@pytest.mark.long
def test_demo_of_another_task_is_scored_by_its_metric(qconvert: Command) -> None:
    report = json.loads(shown(qconvert, "--task", "detect", "--json").out)
    require_scored(report, "detect", "map", 60)


def require_scored(report: dict[str, Any], task: str, metric: str, lowest: float) -> None:
    """Require that every engine is scored by the metric of the task, and loses little."""
    assert report["chain"]["images"] == 25
    for variant in report["variants"]:
        accuracy = variant["accuracy"]
        assert (accuracy["task"], accuracy["primary"]) == (task, metric)
        assert 100 * accuracy["metrics"][metric] > lowest
        assert accuracy["delta_pp"] > -2
        assert accuracy["agreement"] > 97
    assert Path(f"qconvert-demo-{task}/run/report.html").is_file()
