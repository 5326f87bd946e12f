"""The charts of a report, drawn from its figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qconvert.measure.latency import Latency
from qconvert.measure.stats import stats
from qconvert.report import layer_errors, plots
from qconvert.report.evidence import TensorRange, WeightRange
from qconvert.report.front import front
from qconvert.report.model import Report, Variant
from qconvert.report.plots import Axis, Series
from qconvert.report.scatter import Dot, scatter

COLOURS = {
    "fp32": "#808890", "fp16": "#3d87d6", "bf16": "#8d6bd6", "int8": "#e07b24", "mixed": "#2f9e6e",
}  # fmt: skip
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKS = (".", "x", "+", "v")
METHODS = {
    "minmax": "#808890", "percentile:99.99": "#3d87d6", "entropy": "#8d6bd6", "mse": "#2f9e6e",
}  # fmt: skip
CHOSEN = "#d6452b"
POINTS = 120  # of a distribution; more are not seen
SMALLEST, LARGEST = 40.0, 420.0
# A process that builds, times and scores a run writes the same ranges and weights each time.
DRAWN = 64


@dataclass(frozen=True)
class Chart:
    """A drawing and what it shows."""

    title: str
    svg: str
    wide: bool = False


def trade_off(report: Report) -> Chart | None:
    """Return speed against answers; None where fewer than two variants have both."""
    found = front(report)
    if len(found.placed) < 2:
        return None
    most = max(each.bytes for each in found.placed) or 1
    dots = [
        Dot(
            each.variant.name,
            each.ms,
            each.score,
            max(SMALLEST, LARGEST * each.bytes / most),
            _colour(each.variant),
            each.off,
            faint=bool(each.behind),
        )
        for each in found.placed
    ]
    best = [each for each in found.placed if not each.behind]
    line = Series("front", [each.ms for each in best], [each.score for each in best], "#808890")
    return Chart(
        "Speed against answers; the area is the size, lines how sure it is",
        scatter(dots, line, (Axis("ms an image", log=True), Axis(found.score)), found.limit),
    )


def mixes(report: Report) -> list[Chart]:
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
            series.append(Series("the mix", *at, CHOSEN, "solid", "D"))
        title = f"Search for a mix on `{backend}`: what is lifted against what it brings"
        axes = Axis("lifted, % of the compute"), Axis("distance of the outputs from FP32")
        found.append(Chart(title.replace("`", ""), plots.lines(series, *axes)))
    return found


def distributions(report: Report) -> list[Chart]:
    """Return for each batch size what share of the runs took no longer than that."""
    batches = sorted({each.batch for v in report.variants for each in _host(v)})
    charts = []
    for batch in batches:
        series = [
            Series(variant.name, *_shares(each), _colour(variant), _dash(report, variant))
            for variant in report.variants
            for each in _host(variant)
            if each.batch == batch
        ]
        x, y = Axis("ms", log=True), Axis("runs that took no longer, %")
        charts.append(Chart(f"Latency at batch {batch}", plots.lines(series, x, y)))
    return charts


def throughput(report: Report) -> Chart | None:
    """Return images a second by batch size; None where only one batch size was timed."""
    series = []
    for variant in report.variants:
        timed = sorted(_host(variant), key=lambda each: each.batch)
        if timed:
            xs = [float(each.batch) for each in timed]
            ys = [stats(each).images_per_second for each in timed]
            dash = _dash(report, variant)
            series.append(Series(variant.name, xs, ys, _colour(variant), dash, marker="o"))
    if not any(len(each.xs) > 1 for each in series):
        return None
    axes = Axis("batch", log=True), Axis("images a second")
    return Chart("Throughput", plots.lines(series, *axes))


def by_depth(report: Report) -> Chart | None:
    """Return how errors grow from layer to layer: what arrives, and what each makes alone."""
    series = []
    by_name = {each.name: each for each in report.variants}
    for names, layers in layer_errors.distinct(report.variants):
        variant = by_name[names.partition(", ")[0]]
        places = [float(at) for at in range(1, len(layers) + 1)]
        colour, dash = _colour(variant), _dash(report, variant)
        arriving, made = (
            [_finite(getattr(each, name)) for each in layers] for name in ("arriving_db", "made_db")
        )
        series.append(Series(f"{names}: arriving", places, arriving, colour, dash))
        mark = MARKS[DASHES.index(dash)]
        series.append(Series(f"{names}: made here", places, made, colour, "none", mark))
    if not series:
        return None
    chart = plots.lines(
        series, Axis("layer, in the order of the network", whole=True), Axis("SQNR, dB"), (920, 340)
    )
    return Chart("SQNR from layer to layer; lower is worse", chart, wide=True)


@lru_cache(maxsize=DRAWN)
def of_range(found: TensorRange) -> str:
    """Return the values of a tensor, and the range that each method would keep."""
    edges = np.linspace(found.low, found.high, len(found.shares) + 1).tolist()
    marks = [
        (each.low, each.high, METHODS.get(each.method, "#808890"), False) for each in found.kept
    ]
    marks.append((found.chosen.low, found.chosen.high, CHOSEN, True))
    return plots.histogram(edges, found.shares, marks, "")


@lru_cache(maxsize=DRAWN)
def of_weights(found: WeightRange) -> str:
    """Return the largest weight of each channel."""
    return plots.fall(found.largest, found.channels, "")


def _host(variant: Variant) -> Iterator[Latency]:
    yield from (each for each in variant.latency if each.samples_ms and each.where == "host")


def _shares(latency: Latency) -> tuple[list[float], list[float]]:
    share = np.linspace(0, 100, POINTS)
    return np.percentile(latency.samples_ms, share).tolist(), share.tolist()


def _colour(variant: Variant) -> str:
    return COLOURS.get(variant.precision, "#808890")


def _dash(report: Report, variant: Variant) -> str:
    backends = list(dict.fromkeys(each.backend for each in report.variants))
    return DASHES[backends.index(variant.backend) % len(DASHES)]


def _finite(value: float | None) -> float:
    """Return a number, or none to draw: no error at all and an infinite one have no place."""
    return value if value is not None and np.isfinite(value) else float("nan")
