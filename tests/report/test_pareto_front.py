"""Who is on the front of speed and answers, and who is behind whom."""

from dataclasses import replace

import pytest

from qconvert.core.config import GateConfig
from qconvert.report.charts import bar_charts
from qconvert.report.metrics import pareto_front
from qconvert.report.verdict import conclude
from tests.report import reports


def test_who_is_no_better_in_either_is_behind() -> None:
    found = pareto_front(reports.measured())
    assert [each.variant.name for each in found.points] == ["cpu-int8", "cpu-fp32", "cpu-fp16"]
    assert [each.dominated_by for each in found.points] == ["", "", "cpu-fp32"]
    assert found.score_label == "top-1, %"


def test_the_limit_is_that_of_the_gate_about_answers() -> None:
    assert pareto_front(reports.measured()).min_score is None
    judged = conclude(reports.measured(), GateConfig(max_drop=0.5, min_speedup=2))
    assert pareto_front(judged).min_score == 88.33 - 0.5
    agreeing = conclude(reports.unlabelled(), GateConfig(min_agreement=97))
    assert pareto_front(agreeing).min_score == 97


def test_equals_are_not_behind_each_other() -> None:
    fp32, fp16, _ = reports.cpu()
    same = replace(fp16, latency=fp32.latency)
    assert [each.dominated_by for each in pareto_front(reports.report(fp32, same)).points] == [
        "",
        "",
    ]


def test_without_labels_agreement_or_distance_takes_the_place_of_top1() -> None:
    assert pareto_front(reports.unlabelled()).score_label == "agreement with FP32, %"
    distance = pareto_front(reports.regression())
    assert distance.score_label == "SQNR of the outputs, dB"
    assert max(each.score for each in distance.points) == 120.0
    assert pareto_front(reports.unrated()).points == ()


def test_bars_share_one_order_and_keep_a_place_for_what_is_unmeasured() -> None:
    size, latency, change = bar_charts(reports.simulated())
    names = [[bar.name for bar in each.bars] for each in (size, latency, change)]
    assert names[0] == names[1] == names[2]
    assert max(bar.length for bar in size.bars) == 100
    assert [bar.text for bar in latency.bars][-1] == "—"
    assert latency.bars[-1].length == 0


def test_changes_grow_from_the_middle_and_whiskers_stay_on_the_track() -> None:
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
