"""Charts: the same bytes for the same figures, in the page's own colours and font."""

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from qconvert.report import charts, plots
from qconvert.report.metrics import pareto_front
from qconvert.report.plots import Axis, ScatterPoint, Series
from qconvert.report.plots import scatter_chart as drawn
from tests.report import evidence, reports

GOLDEN = Path(__file__).parent / "golden"
DRAWN_WITH = "3.11"


def scatter() -> str:
    found = charts.trade_off_chart(pareto_front(reports.measured()))
    assert found is not None
    return found.svg


@pytest.mark.skipif(
    not mpl.__version__.startswith(DRAWN_WITH), reason="drawn with another Matplotlib"
)
def test_the_drawing_is_what_it_was() -> None:
    assert scatter() == (GOLDEN / "trade_off.svg").read_text(encoding="utf-8")


def test_a_drawing_is_the_same_when_drawn_again() -> None:
    assert scatter() == scatter()
    assert charts.layer_error_chart(evidence.explained()) == charts.layer_error_chart(
        evidence.explained()
    )


def test_a_drawing_has_the_colours_and_the_font_of_the_page() -> None:
    svg = scatter()
    assert plots.INK_COLOUR not in svg
    assert plots.LINE_COLOUR not in svg
    assert "fill: currentColor" in svg
    assert "stroke: var(--line)" in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert len(svg) < 20_000


def test_what_is_named_in_a_drawing_is_text() -> None:
    name = """<script>"$x$" & 'y'"""
    dots = [
        ScatterPoint(name, 1.0, 2.0, 50.0, "#808890"),
        ScatterPoint("b", 2.0, 1.0, 50.0, "#808890"),
    ]
    front = Series("front", [1.0], [2.0], "#808890")
    svg = drawn(dots, front, (Axis("<ms>", log=True), Axis("%")))
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    texts = ["".join(each.itertext()) for each in root.iter() if each.tag.endswith("text")]
    assert name in texts
    assert "<ms>" in texts


def test_how_far_a_point_may_be_off_is_drawn_also_where_that_is_more_than_all() -> None:
    front, axes = Series("front", [1.0], [90.0], "#808890"), (Axis("ms", log=True), Axis("%"))
    sure = drawn([ScatterPoint("a", 1.0, 90.0, 50.0, "#e07b24")], front, axes)
    unsure = drawn([ScatterPoint("a", 1.0, 90.0, 50.0, "#e07b24", (2.0, 0.5))], front, axes)
    assert "stroke: #e07b24" in unsure
    assert "stroke: #e07b24" not in sure
    ticks = [float(each) for each in re.findall(r">(\d[\d.]*)</text>", unsure)]
    # The time goes from a tenth of itself to three times itself, the score half a point each way.
    assert (0.05 <= min(ticks) <= 0.1, 90.3 < max(ticks) < 91) == (True, True)


def test_no_id_stands_in_a_page_twice_but_for_the_same_thing() -> None:
    found = [each.svg for each in charts.latency_charts(reports.measured())]
    assert len(found) == 2
    for svg in found:
        for name in re.findall(r' id="([^"]+)"', svg):
            assert f"#{name}" in svg


def test_distributions_end_at_the_slowest_run_and_throughput_counts_images() -> None:
    report = reports.measured()
    first = charts.latency_charts(report)[0]
    assert first.title == "Latency at batch 1"
    through = charts.throughput_chart(report)
    assert through is not None
    assert "images per second" in through.svg
    assert charts.throughput_chart(reports.report()) is None
    assert charts.trade_off_chart(pareto_front(reports.unrated())) is None


def test_layers_without_error_are_not_drawn() -> None:
    found = charts.layer_error_chart(evidence.explained())
    assert found is not None
    assert "cpu-int8: arriving" in found.svg
    assert "nan" not in found.svg.lower().replace("nano", "")
    assert charts.layer_error_chart(reports.measured()) is None


def test_percentages_are_written_short() -> None:
    assert plots._format_percent(100.0) == "100 %"
    assert plots._format_percent(0.01) == "0.01 %"
    assert plots._format_percent(1e-6) == "10⁻⁶ %"
