"""The charts of a report, drawn from its figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qconvert.core import number_format
from qconvert.measure.evidence import TensorRange, WeightRange
from qconvert.measure.latency import Latency
from qconvert.measure.stats import summarize_latency
from qconvert.report import layer_tables, metrics, plots
from qconvert.report.metrics import pareto_front
from qconvert.report.model import Report, VariantResult
from qconvert.report.plots import Axis, ScatterPoint, Series, scatter_chart
from qconvert.report.table import MISSING

PRECISION_COLOURS = {
    "fp32": "#808890", "fp16": "#3d87d6", "bf16": "#8d6bd6", "int8": "#e07b24", "mixed": "#2f9e6e",
}  # fmt: skip
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = (".", "x", "+", "v")
METHOD_COLOURS = {
    "minmax": "#808890", "percentile:99.99": "#3d87d6", "entropy": "#8d6bd6", "mse": "#2f9e6e",
}  # fmt: skip
CHOSEN_COLOUR = "#d6452b"
CURVE_POINTS = 120  # of a distribution; more are not seen
MIN_AREA, MAX_AREA = 40.0, 420.0
# A process that builds, times and scores a run writes the same ranges and weights each time.
CACHE_SIZE = 64


@dataclass(frozen=True)
class Chart:
    """A drawing and what it shows."""

    title: str
    svg: str
    wide: bool = False


def trade_off_chart(report: Report) -> Chart | None:
    """Return speed against answers; None where fewer than two variants have both."""
    found = pareto_front(report)
    if len(found.points) < 2:
        return None
    most = max(each.bytes for each in found.points) or 1
    dots = [
        ScatterPoint(
            each.variant.name,
            each.ms,
            each.score,
            max(MIN_AREA, MAX_AREA * each.bytes / most),
            _colour(each.variant),
            each.uncertainty,
            faint=bool(each.dominated_by),
        )
        for each in found.points
    ]
    best = [each for each in found.points if not each.dominated_by]
    line = Series("front", [each.ms for each in best], [each.score for each in best], "#808890")
    return Chart(
        "Speed against answers; the area is the size, lines how sure it is",
        scatter_chart(
            dots, line, (Axis("ms an image", log=True), Axis(found.score_label)), found.min_score
        ),
    )


def search_charts(report: Report) -> list[Chart]:
    """Return for each search how far the outputs are from FP32 with more and more lifted."""
    found = []
    for backend, mix in report.mixes.items():
        steps = [mix.int8, *mix.steps]
        if len(steps) < 3:
            continue
        xs, ys = [100 * step.share for step in steps], [step.distance for step in steps]
        series = [Series("sets that were tried", xs, ys, "#808890", "dotted", "o")]
        if mix.chosen is not None:
            at = [100 * mix.chosen.share], [mix.chosen.distance]
            series.append(Series("the mix", *at, CHOSEN_COLOUR, "solid", "D"))
        title = f"Search for a mix on `{backend}`: what is lifted against what it brings"
        axes = Axis("lifted, % of the compute"), Axis("distance of the outputs from FP32")
        found.append(Chart(title.replace("`", ""), plots.line_chart(series, *axes)))
    return found


def latency_charts(report: Report) -> list[Chart]:
    """Return for each batch size what share of the runs took no longer than that."""
    batches = sorted({each.batch for v in report.variants for each in _host_latencies(v)})
    charts = []
    for batch in batches:
        series = [
            Series(
                variant.name,
                *_cumulative_shares(each),
                _colour(variant),
                _line_style(report, variant),
            )
            for variant in report.variants
            for each in _host_latencies(variant)
            if each.batch == batch
        ]
        x, y = Axis("ms", log=True), Axis("runs that took no longer, %")
        charts.append(Chart(f"Latency at batch {batch}", plots.line_chart(series, x, y)))
    return charts


def throughput_chart(report: Report) -> Chart | None:
    """Return images a second by batch size; None where only one batch size was timed."""
    series = []
    for variant in report.variants:
        timed = sorted(_host_latencies(variant), key=lambda each: each.batch)
        if timed:
            xs = [float(each.batch) for each in timed]
            ys = [summarize_latency(each).images_per_second for each in timed]
            dash = _line_style(report, variant)
            series.append(Series(variant.name, xs, ys, _colour(variant), dash, marker="o"))
    if not any(len(each.xs) > 1 for each in series):
        return None
    axes = Axis("batch", log=True), Axis("images a second")
    return Chart("Throughput", plots.line_chart(series, *axes))


def layer_error_chart(report: Report) -> Chart | None:
    """Return how errors grow from layer to layer: what arrives, and what each makes alone."""
    series = []
    by_name = {each.name: each for each in report.variants}
    for names, layers in layer_tables.distinct_layers(report.variants):
        variant = by_name[names.partition(", ")[0]]
        places = [float(at) for at in range(1, len(layers) + 1)]
        colour, dash = _colour(variant), _line_style(report, variant)
        arriving, made = (
            [_finite_or_nan(getattr(each, name)) for each in layers]
            for name in ("arriving_db", "made_db")
        )
        series.append(Series(f"{names}: arriving", places, arriving, colour, dash))
        mark = MARKERS[LINE_STYLES.index(dash)]
        series.append(Series(f"{names}: made here", places, made, colour, "none", mark))
    if not series:
        return None
    chart = plots.line_chart(
        series, Axis("layer, in the order of the network", whole=True), Axis("SQNR, dB"), (920, 340)
    )
    return Chart("SQNR from layer to layer; lower is worse", chart, wide=True)


@lru_cache(maxsize=CACHE_SIZE)
def range_histogram(found: TensorRange) -> str:
    """Return the values of a tensor, and the range that each method would keep."""
    edges = np.linspace(found.low, found.high, len(found.shares) + 1).tolist()
    marks = [
        (each.low, each.high, METHOD_COLOURS.get(each.method, "#808890"), False)
        for each in found.kept
    ]
    marks.append((found.chosen.low, found.chosen.high, CHOSEN_COLOUR, True))
    return plots.histogram(edges, found.shares, marks, "")


@lru_cache(maxsize=CACHE_SIZE)
def weight_chart(found: WeightRange) -> str:
    """Return the largest weight of each channel."""
    return plots.area_chart(found.largest, found.channels, "")


def _host_latencies(variant: VariantResult) -> Iterator[Latency]:
    yield from (each for each in variant.latency if each.samples_ms and each.where == "host")


def _cumulative_shares(latency: Latency) -> tuple[list[float], list[float]]:
    share = np.linspace(0, 100, CURVE_POINTS)
    return np.percentile(latency.samples_ms, share).tolist(), share.tolist()


def _colour(variant: VariantResult) -> str:
    return PRECISION_COLOURS.get(variant.precision, "#808890")


def _line_style(report: Report, variant: VariantResult) -> str:
    backends = list(dict.fromkeys(each.backend for each in report.variants))
    return LINE_STYLES[backends.index(variant.backend) % len(LINE_STYLES)]


def _finite_or_nan(value: float | None) -> float:
    """Return a number, or none to draw: no error at all and an infinite one have no place."""
    return value if value is not None and np.isfinite(value) else float("nan")


@dataclass(frozen=True)
class Bar:
    """A bar from `start` over `length` percent of the track; a whisker where there is a spread."""

    name: str
    text: str
    precision: str
    start: float = 0.0
    length: float = 0.0
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True)
class BarChart:
    """A chart; `zero` is where the track has its zero, if that is not its left end."""

    title: str
    bars: tuple[Bar, ...]
    zero: float | None = None


@dataclass(frozen=True)
class _BarValue:
    value: float
    text: str
    spread: float = 0.0


_BarValues = dict[str, _BarValue]


def bar_charts(report: Report) -> tuple[BarChart, ...]:
    """Return size, latency, and change of the answers, all in one order; none that nobody has."""
    found = (_size_bars(report), _latency_bars(report), _accuracy_bars(report))
    return tuple(each for each in found if each is not None)


def _size_bars(report: Report) -> BarChart | None:
    values = {
        each.name: _BarValue(each.engine.bytes, f"{number_format.megabytes(each.engine.bytes)} MB")
        for each in report.variants
        if each.engine is not None
    }
    return _bars_from_zero("Size", report, values)


def _latency_bars(report: Report) -> BarChart | None:
    values: _BarValues = {}
    batches = set()
    for variant in report.variants:
        latency = metrics.headline_latency(variant)
        if latency is not None:
            found = summarize_latency(latency)
            text = f"{number_format.ms_with_spread(found.median_ms, found.spread_ms)} ms"
            values[variant.name] = _BarValue(found.median_ms, text, found.spread_ms)
            batches.add(latency.batch)
    batch = f" at batch {min(batches)}" if len(batches) == 1 else ""
    return _bars_from_zero(f"Median latency{batch}, with spread", report, values)


def _accuracy_bars(report: Report) -> BarChart | None:
    """Return the change of top-1 with its interval, else how often answers are those of FP32."""
    scored = {each.name: each.accuracy for each in report.variants if each.accuracy is not None}
    changes = {
        name: _BarValue(
            each.change_pp,
            f"{number_format.change_with_interval(each.change_pp, each.half_width_pp)} pp",
            each.half_width_pp or 0.0,
        )
        for name, each in scored.items()
        if each.change_pp is not None
    }
    if changes:
        return _bars_around_zero("Change of top-1, with 95 % interval", report, changes)
    agreeing = {
        name: _BarValue(each.agreement, f"{number_format.percent(each.agreement)} %")
        for name, each in scored.items()
        if each.agreement is not None
    }
    return _bars_from_zero("Answers as by FP32", report, agreeing)


def _bars_from_zero(title: str, report: Report, values: _BarValues) -> BarChart | None:
    if not values:
        return None
    most = max(each.value + each.spread for each in values.values()) or 1.0
    bars = (
        Bar(
            variant.name,
            each.text,
            variant.precision,
            length=100 * each.value / most,
            whisker=_whisker(each, 0.0, most),
        )
        for variant, each in _in_order(report, values)
    )
    return BarChart(title, tuple(bars))


def _bars_around_zero(title: str, report: Report, values: _BarValues) -> BarChart:
    reach = max(abs(each.value) + each.spread for each in values.values()) or 1.0
    bars = (
        Bar(
            variant.name,
            each.text,
            variant.precision,
            start=50 + 50 * min(each.value, 0.0) / reach,
            length=50 * abs(each.value) / reach,
            whisker=_whisker(each, -reach, reach),
        )
        for variant, each in _in_order(report, values)
    )
    return BarChart(title, tuple(bars), zero=50.0)


def _in_order(report: Report, values: _BarValues) -> list[tuple[VariantResult, _BarValue]]:
    """Return every variant; one without a value keeps its place, without a bar."""
    return [(each, values.get(each.name, _BarValue(0.0, MISSING))) for each in report.variants]


def _whisker(value: _BarValue, low: float, high: float) -> tuple[float, float] | None:
    if not value.spread:
        return None
    ends = (value.value - value.spread, value.value + value.spread)
    start, end = (100 * (min(max(each, low), high) - low) / (high - low) for each in ends)
    return start, end - start
