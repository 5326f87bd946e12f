"""The Pareto front of speed and accuracy, and the bar charts."""

from dataclasses import replace

import pytest

from qconvert.core.config import GateConfig
from qconvert.report.charts import bar_charts
from qconvert.report.metrics import pareto_front
from qconvert.report.verdict import conclude
from tests.report import reports


def test_variant_worse_in_both_is_dominated() -> None:
    front = pareto_front(reports.measured())
    assert [point.variant.name for point in front.points] == ["cpu-int8", "cpu-fp32", "cpu-fp16"]
    assert [point.dominated_by for point in front.points] == ["", "", "cpu-fp32"]
    assert front.score_label == "top-1, %"


def test_min_score_follows_from_the_accuracy_gate() -> None:
    assert pareto_front(reports.measured()).min_score is None
    judged = conclude(reports.measured(), GateConfig(max_drop=0.5, min_speedup=2))
    assert pareto_front(judged).min_score == 88.33 - 0.5
    agreeing = conclude(reports.unlabelled(), GateConfig(min_agreement=97))
    assert pareto_front(agreeing).min_score == 97


def test_equal_variants_do_not_dominate_each_other() -> None:
    fp32, fp16, _ = reports.cpu()
    same = replace(fp16, latency=fp32.latency)
    assert [point.dominated_by for point in pareto_front(reports.report(fp32, same)).points] == [
        "",
        "",
    ]


def test_front_without_labels_uses_agreement_or_sqnr() -> None:
    assert pareto_front(reports.unlabelled()).score_label == "agreement with FP32, %"
    distance = pareto_front(reports.regression())
    assert distance.score_label == "SQNR of the outputs, dB"
    assert max(point.score for point in distance.points) == 120.0
    assert pareto_front(reports.unrated()).points == ()


def test_bar_charts_keep_a_place_for_unmeasured_variants() -> None:
    size, latency, change = bar_charts(reports.simulated())
    names = [[bar.name for bar in chart.bars] for chart in (size, latency, change)]
    assert names[0] == names[1] == names[2]
    assert max(bar.length for bar in size.bars) == 100
    assert [bar.text for bar in latency.bars][-1] == "—"
    assert latency.bars[-1].length == 0


def test_change_bars_start_at_zero_and_whiskers_stay_on_the_track() -> None:
    change = bar_charts(reports.measured())[2]
    lost = change.bars[2]
    assert change.zero == pytest.approx(50)
    assert lost.start < 50
    assert lost.start + lost.length == pytest.approx(50)
    assert lost.whisker is not None
    assert lost.whisker[0] >= 0
    assert lost.whisker[0] + lost.whisker[1] <= 100
    agreement = bar_charts(reports.unlabelled())[2]
    assert (agreement.title, agreement.zero) == ("Agreement with FP32", None)
