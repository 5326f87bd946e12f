"""Tables, gates, verdict, JSON and card of detectors, segmenters and embeddings."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from qconvert.core.config import GateConfig
from qconvert.report import json_file, metrics, tables
from qconvert.report.gates import describe_gate, evaluate_gates
from qconvert.report.html import render_html
from qconvert.report.markdown import render_card, render_markdown
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.docs.commands import ROOT
from tests.report import task_reports
from tests.report.task_reports import of_task, scored

TASKS = ["detect", "segment", "embed"]
COLUMNS = {
    "detect": ("mAP", "mAP.50", "mAP.75", "small", "AR@100"),
    "segment": ("mIoU", "Dice", "pixels"),
    "embed": ("recall@1", "recall@5", "cosine"),
}


def titles(report: Report) -> tuple[str, ...]:
    return tuple(column.title for column in tables.accuracy_table(report).columns)


@pytest.mark.parametrize("task", TASKS)
def test_columns_are_the_metrics_of_the_task(task: str) -> None:
    table = tables.accuracy_table(of_task(task))
    assert titles(of_task(task)) == ("variant", *COLUMNS[task], "change pp", "agrees")
    assert table.title == "Accuracy, % of 300 images"
    primary = 100 * task_reports.OWN[task][task_reports.PRIMARY[task]]
    baseline, fp32, _, int8 = table.rows
    assert baseline[:2] == ["FP32 ONNX", f"{primary:.2f}"]
    assert int8[1] == f"{primary - 0.34:.2f}"
    assert int8[-2:] == ["−0.34 ± 0.21", "98.70"]
    assert fp32[-1] == "100.0"


@pytest.mark.parametrize("task", TASKS)
def test_without_truth_the_table_says_what_is_missing(task: str) -> None:
    table = tables.accuracy_table(of_task(task, None))
    assert titles(of_task(task, None))[:3] == ("variant", "agrees", "SQNR dB")
    assert metrics.TRUTH_REQUIRED[task] in table.footnotes[-1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("change", [-0.34, None])
def test_report_comes_back_from_json_and_fits_its_schema(task: str, change: float | None) -> None:
    report = conclude(of_task(task, change), GateConfig(max_drop=1.0, min_agreement=98.0))
    text = json_file.dumps(report)
    schema = json.loads((ROOT / "docs/reference/report.schema.json").read_text())
    jsonschema.validate(json.loads(text), schema)
    again = json_file.loads(text, "report.json")
    assert json_file.dumps(again) == text
    assert [variant.accuracy for variant in again.variants] == [
        variant.accuracy for variant in report.variants
    ]


@pytest.mark.parametrize(
    ("task", "words"), [("detect", "mAP"), ("segment", "mIoU"), ("embed", "recall@1")]
)
def test_gate_and_verdict_name_the_metric(task: str, words: str) -> None:
    report = conclude(of_task(task), GateConfig(max_drop=0.5))
    assert [describe_gate(gate) for gate in report.gates] == [
        f"max-drop: `cpu-fp16` lost 0.00 ± 0.21 pp of {words}, limit 0.50 pp",
        f"max-drop: `cpu-int8` lost 0.34 ± 0.21 pp of {words}, limit 0.50 pp",
    ]
    assert report.best == "cpu-int8"
    assert f"{words} −0.3 ± 0.2 pp; all gates passed" in report.verdict
    strict = conclude(of_task(task), GateConfig(max_drop=0.3))
    assert strict.best == "cpu-fp32"
    assert f"`cpu-int8` fails max-drop (lost 0.34 ± 0.21 pp of {words}" in strict.verdict


@pytest.mark.parametrize(
    ("task", "things"),
    [("detect", "boxes"), ("segment", "pixels"), ("embed", "nearest neighbours")],
)
def test_verdict_without_truth_counts_what_agrees(task: str, things: str) -> None:
    report = conclude(of_task(task, None), GateConfig())
    assert report.best == "cpu-int8"
    assert f"agrees with FP32 on 98.70 % of the {things}" in report.verdict
    (gate,) = evaluate_gates(of_task(task, None), GateConfig(max_drop=1.0))[1:]
    assert (gate.value, gate.passed) == (None, False)
    assert gate.why == metrics.TRUTH_REQUIRED[task]


def test_engine_that_loses_too_much_does_not_ship() -> None:
    report = conclude(of_task("detect", -7.0, agreement=80.0), GateConfig())
    assert report.best == "cpu-fp32"
    assert "`cpu-int8` differs too much from FP32 (mAP −7.0 ± 0.2 pp)" in report.verdict


@pytest.mark.parametrize(("task", "words"), [("detect", "mAP"), ("segment", "mIoU")])
def test_low_score_of_fp32_is_doubted(task: Any, words: str) -> None:
    report = of_task(task)
    name = task_reports.PRIMARY[task]
    low = {**task_reports.OWN[task], name: 0.02}
    assert report.baseline is not None
    baseline = replace(report.baseline, metrics=low)
    notes = conclude(replace(report, baseline=baseline), GateConfig()).notes
    assert any(f"the FP32 model has only 2.00 % of {words}" in note for note in notes)


@pytest.mark.parametrize(
    ("task", "kind"),
    [("detect", "object-detection"), ("segment", "image-segmentation"), ("embed", "feature")],
)
def test_card_has_the_metrics_of_the_task(task: str, kind: str) -> None:
    report = conclude(of_task(task), GateConfig())
    front = render_card(report, "cpu-int8").split("---")[1]
    assert kind in front
    for name in task_reports.OWN[task]:
        assert f"- type: {name}" in front
    assert "top1" not in front
    assert "model-index" not in render_card(conclude(of_task(task, None), GateConfig()))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("change", [-0.34, None])
def test_pages_have_no_words_of_classifiers(task: str, change: float | None) -> None:
    report = conclude(of_task(task, change), GateConfig(max_drop=1.0))
    for page in (render_markdown(report), render_html(report, {})):
        assert "top-1" not in page
        assert "F1" not in page


def test_reasons_for_missing_scores_of_a_detector() -> None:
    (variant,) = of_task("detect").variants[-1:]
    nothing = scored("detect", 0.0, agreement=None)
    silent = replace(variant, accuracy=nothing)
    assert metrics.missing_score_reason(silent, "agreement") == metrics.NO_BOXES
    empty = scored("detect", None, labelled=300)
    reason = metrics.missing_score_reason(replace(variant, accuracy=empty), "change_pp")
    assert reason == metrics.EMPTY_TRUTH
    unlabelled = scored("detect", None)
    reason = metrics.missing_score_reason(replace(variant, accuracy=unlabelled), "change_pp")
    assert reason == metrics.TRUTH_REQUIRED["detect"]


def test_pareto_front_uses_the_metric_of_the_task() -> None:
    front = metrics.pareto_front(conclude(of_task("detect"), GateConfig(max_drop=1.0)))
    assert front.score_label == "mAP, %"
    assert front.min_score == pytest.approx(92.21)
    assert next(point.variant.name for point in front.points) == "cpu-int8"
    assert metrics.pareto_front(of_task("detect", None)).score_label == "agreement with FP32, %"
