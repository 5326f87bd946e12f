"""The charts of a report: which figures each one shows, and in which colours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qconvert.core import number_format as fmt
from qconvert.measure.evidence import TensorRange, WeightRange
from qconvert.measure.latency import Latency, summarize_latency
from qconvert.report import metrics, plots
from qconvert.report.layer_tables import distinct_layers
from qconvert.report.metrics import ParetoFront
from qconvert.report.model import Report, VariantResult
from qconvert.report.plots import Axis, ScatterPoint, Series
from qconvert.report.table import MISSING

GREY = "#808890"
PRECISION_COLOURS = {
    "fp32": GREY,
    "fp16": "#3d87d6",
    "bf16": "#8d6bd6",
    "int8": "#e07b24",
    "mixed": "#2f9e6e",
}
METHOD_COLOURS = {
    "minmax": GREY,
    "percentile:99.99": "#3d87d6",
    "entropy": "#8d6bd6",
    "mse": "#2f9e6e",
}
CHOSEN_COLOUR = "#d6452b"
# A backend has a line style and a marker.
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = (".", "x", "+", "v")
CURVE_POINTS = 120
MIN_AREA, MAX_AREA = 40.0, 420.0
# A process that builds, times and scores a run draws the same ranges and weights each time.
CACHE_SIZE = 64


@dataclass(frozen=True)
class Chart:
    """A drawing and its title."""

    title: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar in percent of the track, with a whisker (start and length) where there is a spread."""

    name: str
    text: str
    precision: str
    start: float = 0.0
    length: float = 0.0
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True)
class BarChart:
    """A bar for each variant; `zero` is the place of zero where it is not the left end."""

    title: str
    bars: tuple[Bar, ...]
    zero: float | None = None


# A value and its spread, by variant.
BarValues = dict[str, tuple[float, float | None]]


def bar_charts(report: Report) -> list[BarChart]:
    """Return size, latency and accuracy, as far as measured, with the variants in one order."""
    sizes: BarValues = {
        variant.name: (variant.engine.bytes, None) for variant in report.variants if variant.engine
    }
    latencies: BarValues = {}
    batches = set()
    for variant in report.variants:
        latency = metrics.headline_latency(variant)
        if latency is not None:
            batches.add(latency.batch)
            stats = summarize_latency(latency)
            latencies[variant.name] = stats.median_ms, stats.spread_ms
    at_batch = f" at batch {min(batches)}" if len(batches) == 1 else ""
    accuracies = {v.name: v.accuracy for v in report.variants if v.accuracy is not None}
    changes: BarValues = {
        name: (accuracy.change_pp, accuracy.half_width_pp)
        for name, accuracy in accuracies.items()
        if accuracy.change_pp is not None
    }
    agreements: BarValues = {
        name: (accuracy.agreement, None)
        for name, accuracy in accuracies.items()
        if accuracy.agreement is not None and not changes
    }
    charts = (
        _bar_chart("Size", report, sizes, lambda size, _: f"{fmt.megabytes(size)} MB"),
        _bar_chart(
            f"Median latency{at_batch}, with spread",
            report,
            latencies,
            lambda ms, spread: f"{fmt.ms_with_spread(ms, spread or 0.0)} ms",
        ),
        _bar_chart(
            "Change of top-1, with 95 % interval",
            report,
            changes,
            lambda change, half_width: f"{fmt.change_with_interval(change, half_width)} pp",
            signed=True,
        ),
        _bar_chart(
            "Agreement with FP32", report, agreements, lambda value, _: f"{fmt.percent(value)} %"
        ),
    )
    return [chart for chart in charts if chart.bars]


def _bar_chart(
    title: str,
    report: Report,
    values: BarValues,
    write: Callable[[float, float | None], str],
    *,
    signed: bool = False,
) -> BarChart:
    """Return a bar for every variant, of length 0 without a value; no bars without any value."""
    high = max((abs(value) + (spread or 0.0) for value, spread in values.values()), default=0) or 1
    low = -high if signed else 0.0

    def span(start: float, end: float) -> tuple[float, float]:
        left, right = (
            100 * (min(max(value, low), high) - low) / (high - low) for value in (start, end)
        )
        return left, right - left

    bars = []
    for variant in report.variants if values else ():
        value, spread = values.get(variant.name, (0.0, None))
        text = write(value, spread) if variant.name in values else MISSING
        whisker = span(value - spread, value + spread) if spread else None
        start, length = span(min(value, 0.0), max(value, 0.0))
        bars.append(Bar(variant.name, text, variant.precision, start, length, whisker))
    return BarChart(title, tuple(bars), zero=50.0 if signed else None)


def trade_off_chart(front: ParetoFront) -> Chart | None:
    """Return speed against accuracy; None where fewer than two variants have both."""
    if len(front.points) < 2:
        return None
    sizes = [point.variant.engine.bytes if point.variant.engine else 0 for point in front.points]
    dots = [
        ScatterPoint(
            point.variant.name,
            point.ms,
            point.score,
            max(MIN_AREA, MAX_AREA * size / (max(sizes) or 1)),
            _colour(point.variant),
            point.uncertainty,
            faint=bool(point.dominated_by),
        )
        for point, size in zip(front.points, sizes, strict=True)
    ]
    best = [point for point in front.points if not point.dominated_by]
    line = Series("front", [point.ms for point in best], [point.score for point in best], GREY)
    axes = Axis("ms per image", log=True), Axis(front.score_label)
    return Chart(
        "Speed against accuracy; areas are sizes, lines are uncertainties",
        plots.scatter_chart(dots, line, axes, front.min_score),
    )


def search_charts(report: Report) -> list[Chart]:
    """Return for each search how the output error falls with more blocks in float."""
    charts = []
    for backend, result in report.mixes.items():
        steps = [result.int8, *result.steps]
        if len(steps) < 3:
            continue
        shares, errors = [100 * step.share for step in steps], [step.distance for step in steps]
        series = [Series("sets that were tried", shares, errors, GREY, "dotted", "o")]
        if result.chosen is not None:
            share, error = [100 * result.chosen.share], [result.chosen.distance]
            series.append(Series("the chosen set", share, error, CHOSEN_COLOUR, "solid", "D"))
        axes = Axis("in float, % of the compute"), Axis("output error against FP32")
        title = f"Search for mixed precision on {backend}: what float costs and brings"
        charts.append(Chart(title, plots.line_chart(series, *axes)))
    return charts


def latency_charts(report: Report) -> list[Chart]:
    """Return for each batch size the cumulative distribution of the latencies."""
    share = np.linspace(0, 100, CURVE_POINTS)
    batches = sorted({latency.batch for v in report.variants for latency in _host_latencies(v)})
    charts = []
    for batch in batches:
        series = [
            Series(
                variant.name,
                np.percentile(latency.samples_ms, share).tolist(),
                share.tolist(),
                _colour(variant),
                _line_style(report, variant),
            )
            for variant in report.variants
            for latency in _host_latencies(variant)
            if latency.batch == batch
        ]
        axes = Axis("ms", log=True), Axis("runs that took no longer, %")
        charts.append(Chart(f"Latency at batch {batch}", plots.line_chart(series, *axes)))
    return charts


def throughput_chart(report: Report) -> Chart | None:
    """Return images per second by batch size; None where only one batch size was timed."""
    series = []
    for variant in report.variants:
        latencies = sorted(_host_latencies(variant), key=lambda latency: latency.batch)
        if latencies:
            batches = [float(latency.batch) for latency in latencies]
            rates = [summarize_latency(latency).images_per_second for latency in latencies]
            style = _line_style(report, variant)
            series.append(Series(variant.name, batches, rates, _colour(variant), style, "o"))
    if not any(len(line.xs) > 1 for line in series):
        return None
    axes = Axis("batch", log=True), Axis("images per second")
    return Chart("Throughput", plots.line_chart(series, *axes))


def layer_error_chart(report: Report) -> Chart | None:
    """Return how errors grow from layer to layer: what arrives, and what each makes alone."""
    series = []
    by_name = {variant.name: variant for variant in report.variants}
    for names, layers in distinct_layers(report.variants):
        variant = by_name[names.partition(", ")[0]]
        colour, style = _colour(variant), _line_style(report, variant)
        places = [float(place) for place in range(1, len(layers) + 1)]
        arriving = [_finite_or_nan(layer.arriving_db) for layer in layers]
        own = [_finite_or_nan(layer.made_db) for layer in layers]
        marker = MARKERS[LINE_STYLES.index(style)]
        series.append(Series(f"{names}: arriving", places, arriving, colour, style))
        series.append(Series(f"{names}: made here", places, own, colour, "none", marker))
    if not series:
        return None
    axes = Axis("layer, in the order of the network", whole=True), Axis("SQNR, dB")
    chart = plots.line_chart(series, *axes, size=(920, 340))
    return Chart("SQNR from layer to layer; lower is worse", chart, wide=True)


@lru_cache(maxsize=CACHE_SIZE)
def range_histogram(tensor: TensorRange) -> str:
    """Return the values of a tensor, and the range that each method chooses."""
    edges = np.linspace(tensor.low, tensor.high, len(tensor.shares) + 1).tolist()
    marks = [
        (interval.low, interval.high, METHOD_COLOURS.get(interval.method, GREY), False)
        for interval in tensor.kept
    ]
    marks.append((tensor.chosen.low, tensor.chosen.high, CHOSEN_COLOUR, True))
    return plots.histogram(edges, tensor.shares, marks)


@lru_cache(maxsize=CACHE_SIZE)
def weight_chart(weights: WeightRange) -> str:
    """Return the largest weight of each channel."""
    return plots.area_chart(weights.largest, weights.channels)


def _host_latencies(variant: VariantResult) -> list[Latency]:
    return [
        latency for latency in variant.latency if latency.samples_ms and latency.where == "host"
    ]


def _colour(variant: VariantResult) -> str:
    return PRECISION_COLOURS.get(variant.precision, GREY)


def _line_style(report: Report, variant: VariantResult) -> str:
    backends = list(dict.fromkeys(other.backend for other in report.variants))
    return LINE_STYLES[backends.index(variant.backend) % len(LINE_STYLES)]


def _finite_or_nan(value: float | None) -> float:
    """Return a number to draw: no error at all and an infinite one have no place in a chart."""
    return value if value is not None and np.isfinite(value) else float("nan")
