"""Charts are deterministic and match the style of the page; their Pareto front and bars."""

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from qconvert.core.config import GateConfig
from qconvert.measure.training_curve import TrainingCurve
from qconvert.report import charts
from qconvert.report.charts import bar_charts
from qconvert.report.metrics import ParetoFront, TradeOffPoint, pareto_front
from qconvert.report.verdict import conclude
from tests.report import evidence, reports

GOLDEN = Path(__file__).parent / "golden"
DRAWN_WITH = "3.11"


def scatter(front: ParetoFront | None = None) -> str:
    chart = charts.trade_off_chart(front or pareto_front(reports.measured()))
    assert chart is not None
    return chart.svg


def point(name: str, ms: float, spread: float = 0.0, half_width: float = 0.0) -> TradeOffPoint:
    return TradeOffPoint(reports.variant(name, 5.0, ms), ms, 90.0, (spread, half_width), "")


@pytest.mark.skipif(
    not mpl.__version__.startswith(DRAWN_WITH), reason="drawn with another Matplotlib"
)
def test_trade_off_chart_matches_the_golden_file() -> None:
    golden = (GOLDEN / "trade_off.svg").read_text(encoding="utf-8")
    (drawn, numbers), (expected, places) = map(words_and_numbers, (scatter(), golden))
    assert drawn == expected
    assert numbers == pytest.approx(places, abs=0.01)


def words_and_numbers(svg: str) -> tuple[list[str], list[float]]:
    """Split a drawing into what every CPU draws alike and numbers, whose last digits may differ.

    Names are hashes of such numbers, so they are counted.
    """
    names: dict[str, str] = {}
    svg = re.sub(
        r"\b[a-z]+[0-9a-f]{10}\b", lambda it: names.setdefault(it[0], f"#{len(names)}"), svg
    )
    parts = re.split(r"(-?\d+\.\d+)", svg)
    return parts[::2], [float(number) for number in parts[1::2]]


@pytest.mark.parametrize(
    ("before", "after"), [(">cpu-int8<", ">cpu-int4<"), ("M 4", "M 5"), ("</g>", "")]
)
def test_another_drawing_does_not_match(before: str, after: str) -> None:
    drawn = scatter()
    assert before in drawn
    changed = drawn.replace(before, after, 1)
    (words, numbers), (others, places) = map(words_and_numbers, (drawn, changed))
    assert words != others or numbers != pytest.approx(places, abs=0.01)


def test_chart_has_the_colours_and_font_of_the_page() -> None:
    svg = scatter()
    assert charts.INK_COLOUR not in svg
    assert charts.LINE_COLOUR not in svg
    assert "fill: currentColor" in svg
    assert "stroke: var(--line)" in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert len(svg) < 20_000


def test_names_in_a_chart_are_escaped() -> None:
    name = """<script>"$x$" & 'y'-int8"""
    svg = scatter(ParetoFront((point(name, 1.0), point("b-int8", 2.0)), "<score>"))
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert name in texts
    assert "<score>" in texts


def test_error_bar_wider_than_the_value_is_drawn() -> None:
    sure = scatter(ParetoFront((point("a-int8", 1.0), point("b-fp32", 1.0))))
    unsure = scatter(ParetoFront((point("a-int8", 1.0, 2.0, 0.5), point("b-fp32", 1.0))))
    assert "stroke: #e07b24" in unsure
    assert "stroke: #e07b24" not in sure
    ticks = [float(tick) for tick in re.findall(r">(\d[\d.]*)</text>", unsure)]
    # The time axis spans a tenth to three times the time, the score axis half a point each way.
    assert (0.05 <= min(ticks) <= 0.1, 90.3 < max(ticks) < 91) == (True, True)


def test_chart_has_no_unreferenced_ids() -> None:
    svgs = [chart.svg for chart in charts.latency_charts(reports.measured())]
    assert len(svgs) == 2
    for svg in svgs:
        for name in re.findall(r' id="([^"]+)"', svg):
            assert f"#{name}" in svg


def test_latency_and_throughput_charts_are_drawn_if_measured() -> None:
    report = reports.measured()
    first = charts.latency_charts(report)[0]
    assert first.title == "Latency at batch 1"
    through = charts.throughput_chart(report)
    assert through is not None
    assert "images per second" in through.svg
    assert charts.throughput_chart(reports.report()) is None
    assert charts.trade_off_chart(pareto_front(reports.unrated())) is None


def test_layers_without_error_are_not_drawn() -> None:
    chart = charts.layer_error_chart(evidence.explained())
    assert chart is not None
    assert "cpu-int8: arriving" in chart.svg
    assert "nan" not in chart.svg.lower().replace("nano", "")
    assert charts.layer_error_chart(reports.measured()) is None


def test_training_is_drawn_with_the_step_that_is_used() -> None:
    validation, loss = charts.training_charts(evidence.explained())
    assert "SQNR, dB" in validation.svg
    assert ">cpu-int8: used<" in validation.svg
    assert "loss" in loss.svg
    assert charts.training_charts(reports.measured()) == []


def test_training_without_success_is_drawn_as_not_used() -> None:
    curve = TrainingCurve((0, 8), (math.nan, 0.5), (20.0, -math.inf), 0, kept=False)
    trained = replace(reports.cpu()[2], training=curve)
    validation, loss = charts.training_charts(reports.report(trained))
    assert ">cpu-int8: best, not used<" in validation.svg
    assert "nan" not in (validation.svg + loss.svg).lower()


def test_percentage_ticks_are_short() -> None:
    assert charts.format_percent(100.0) == "100 %"
    assert charts.format_percent(0.01) == "0.01 %"
    assert charts.format_percent(1e-6) == "10⁻⁶ %"


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
