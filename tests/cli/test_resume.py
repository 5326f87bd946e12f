"""A run in several steps keeps results that are still valid, and discards all others."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Outcome

pytestmark = pytest.mark.long

Command = Callable[..., Outcome]
GIVEN = ("build", "model.onnx", "--images", "calib_data", "--eval", "val", "-o", "run")
QUICK = ("--seconds", "0.02", "--batch-sizes", "1,4")
CPU = ("--backend", "cpu")


@pytest.fixture(autouse=True)
def _world(world: Path) -> None:
    """Start with a run that was built, timed and evaluated, as if on this machine."""
    text = Path("run/run.toml").read_text()
    there = Path(tomllib.loads(text)["model"]).parent
    Path("run/run.toml").write_text(text.replace(str(there), str(world)))


def rows() -> dict[str, Any]:
    return {entry["name"]: entry for entry in report()["variants"]}


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("run/report.json").read_text())
    return content


def test_latencies_survive_an_evaluation(qconvert: Command) -> None:
    before = rows()
    options = ("--from", "run", "--backend", "tensorrt-rtx", "--precision", "fp16", *QUICK)
    outcome = qconvert("build", *options)
    assert outcome.code == 0, outcome.err
    after = rows()
    assert "tensorrt-rtx-fp16" in after
    assert after["cpu-int8"]["latency"] == before["cpu-int8"]["latency"] != []


def test_plan_only_build_replaces_no_engine(qconvert: Command) -> None:
    before, earlier = rows(), report()
    outcome = qconvert(*GIVEN, *CPU, "--precision", "fp32,int8", *QUICK, "--plan-only")
    assert outcome.code == 0, outcome.err
    assert rows()["cpu-int8"]["engine"] == before["cpu-int8"]["engine"]
    assert rows()["cpu-int8"]["latency"] == before["cpu-int8"]["latency"]
    assert report()["best"] == earlier["best"] != ""


def test_gates_added_while_resuming_stay_with_the_run(qconvert: Command) -> None:
    options = ("--precision", "fp32,int8", *CPU, *QUICK)
    assert qconvert("build", "--from", "run", *options, "--max-size", "0.001").code == 1
    assert qconvert("bench", "run", *QUICK).code == 1
    assert any(not entry["passed"] for entry in report()["gates"])


def test_search_leaves_the_settings_of_a_run_unchanged(qconvert: Command) -> None:
    assert qconvert("build", "--from", "run", *CPU, *QUICK, "--max-size", "9").code == 0
    before = Path("run/run.toml").read_text()
    search = ("search", "model.onnx", "--images", "calib_data", "--backend", "tensorrt-rtx")
    outcome = qconvert(*search, "--budget", "50", "-o", "run")
    assert outcome.code == 0, outcome.err
    after = Path("run/run.toml").read_text()
    assert after == before.replace("budget = 0.5", "budget = 50.0")


def test_failed_build_keeps_the_run_settings(qconvert: Command) -> None:
    before = Path("run/run.toml").read_text()
    options = ("--backend", "tensorrt-rtx", "--precision", "mixed", "--budget", "50", *QUICK)
    outcome = qconvert(*GIVEN, *options)
    assert outcome.code == 3, outcome.err
    assert Path("run/run.toml").read_text() == before


def test_report_row_of_a_replaced_engine_is_discarded(qconvert: Command) -> None:
    changed = report()
    changed["variants"][1]["engine"]["sha256"] = "0" * 64
    Path("run/report.json").write_text(json.dumps(changed))
    assert qconvert("bench", "run", *QUICK).code == 0
    assert rows()["cpu-int8"]["accuracy"] is None
    assert rows()["cpu-int8"]["engine"]["sha256"] != "0" * 64
    assert rows()["cpu-fp32"]["accuracy"] is not None


def test_evidence_and_notes_of_an_engine_survive(qconvert: Command) -> None:
    before, shown = rows(), report()["evidence"]
    assert qconvert("build", "--from", "run", *CPU, "--precision", "fp32", *QUICK).code == 0
    assert report()["evidence"]["ranges"] == shown["ranges"] != []
    assert report()["evidence"]["feature_maps"] == shown["feature_maps"]
    assert qconvert("build", "--from", "run", *CPU, "--precision", "int8", *QUICK).code == 0
    assert rows()["cpu-int8"]["notes"] == before["cpu-int8"]["notes"] != []


def test_moved_calibration_images_are_accepted_only_unchanged(qconvert: Command) -> None:
    options = ("build", "--from", "run", *CPU, "--precision", "fp16", *QUICK)
    Path("calib_data").rename("moved")
    refused = qconvert(*options, "--images", "val")
    assert refused.code == 2
    assert "does not contain the images that `run` was calibrated on" in refused.err
    assert 'calib_data"' in Path("run/run.toml").read_text()
    outcome = qconvert(*options, "--images", "moved")
    assert outcome.code == 0, outcome.err
    assert 'moved"' in Path("run/run.toml").read_text()
    assert "cpu-fp16" in rows()


def test_bench_refuses_an_unfinished_run(qconvert: Command) -> None:
    Path("run/report.json").unlink()
    outcome = qconvert("bench", "run", *QUICK)
    assert outcome.code == 2
    assert "`qconvert build --from run` resumes it" in outcome.err
