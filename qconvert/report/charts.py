"""The charts of a report: inline SVG, drawn by Matplotlib, and bars.

Text has the page's colour and font, so that charts are readable in light and dark mode. Equal data
give equal bytes.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from qconvert.core import number_format as fmt
from qconvert.core.sanitize import sanitize_text
from qconvert.measure.evidence import TensorRange, WeightRange
from qconvert.measure.latency import Latency, summarize_latency
from qconvert.report import metrics
from qconvert.report.metrics import ParetoFront, TradeOffPoint
from qconvert.report.model import Report, VariantResult
from qconvert.report.table import MISSING, SUPERSCRIPT
from qconvert.report.tables import distinct_layers

logging.getLogger("matplotlib").setLevel(logging.ERROR)

# Placeholders that `_inline_svg` replaces by the colours of the page.
INK_COLOUR, LINE_COLOUR = "#010203", "#040506"
GREY, RED, ORANGE = "#808890", "#d6452b", "#e07b24"
BLUE, PURPLE, GREEN, GOLD = "#3d87d6", "#8d6bd6", "#2f9e6e", "#b59a1a"
TEAL, PINK = "#1f9aa6", "#c9528f"
PRECISION_COLOURS = {
    **{"fp32": GREY, "fp16": BLUE, "bf16": PURPLE, "int8": ORANGE, "mixed": GREEN},
    **{"int8-dynamic": GOLD, "int8-weights": TEAL, "int4-weights": PINK},
}
METHOD_COLOURS = {"minmax": GREY, "percentile:99.99": BLUE, "entropy": PURPLE, "mse": GREEN}
CHOSEN_COLOUR = RED
# A backend has a line style and a marker.
LINE_STYLES = {"solid": ".", "dashed": "x", "dotted": "+", "dashdot": "v"}
RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qconvert",
    "text.parse_math": False,
    "font.size": 10.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "grid.linewidth": 0.6,
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE_COLOUR),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK_COLOUR),
    **{f"{axis}tick.{kind}.size": 0.0 for axis in "xy" for kind in ("major", "minor")},
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
POINTS_PER_INCH = 72
SMALL_SIZE = (300, 150)
MAX_NAME_LENGTH = 48
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
    start: float
    length: float
    whisker: tuple[float, float] | None


@dataclass(frozen=True)
class BarChart:
    """A bar for each variant; `zero` is the place of zero where it is not the left end."""

    title: str
    bars: tuple[Bar, ...]
    zero: float | None = None


# A value, its spread and its text, by variant.
BarValues = dict[str, tuple[float, float, str]]


def bar_charts(report: Report) -> list[BarChart]:
    """Return size, latency and accuracy, where measured, with variants in the same order."""
    sizes, latencies, changes, agreements = (BarValues() for _ in range(4))
    batches = set()
    for variant in report.variants:
        name, accuracy = variant.name, variant.accuracy
        if variant.engine is not None:
            sizes[name] = variant.engine.bytes, 0.0, f"{fmt.megabytes(variant.engine.bytes)} MB"
        if latency := metrics.headline_latency(variant):
            batches.add(latency.batch)
            stats = summarize_latency(latency)
            text = fmt.ms_with_spread(stats.median_ms, stats.spread_ms)
            latencies[name] = stats.median_ms, stats.spread_ms, f"{text} ms"
        if accuracy is not None and accuracy.change_pp is not None:
            text = fmt.change_with_interval(accuracy.change_pp, accuracy.half_width_pp)
            changes[name] = accuracy.change_pp, accuracy.half_width_pp or 0.0, f"{text} pp"
        if accuracy is not None and accuracy.agreement is not None:
            agreements[name] = accuracy.agreement, 0.0, f"{fmt.percent(accuracy.agreement)} %"
    at_batch = f" at batch {min(batches)}" if len(batches) == 1 else ""
    charts = (
        _bar_chart("Size", report, sizes),
        _bar_chart(f"Median latency{at_batch}, with spread", report, latencies),
        _bar_chart(
            f"Change of {metrics.primary_title(report)}, with 95 % interval",
            report,
            changes,
            signed=True,
        ),
        _bar_chart("Agreement with FP32", report, {} if changes else agreements),
    )
    return [chart for chart in charts if chart.bars]


def _bar_chart(title: str, report: Report, values: BarValues, *, signed: bool = False) -> BarChart:
    """Return a bar for every variant, of length 0 without a value; no bars without any value."""
    high = max((abs(value) + spread for value, spread, _ in values.values()), default=0) or 1
    low = -high if signed else 0.0
    bars = []
    for variant in report.variants if values else ():
        value, spread, text = values.get(variant.name, (0.0, 0.0, MISSING))
        ends = (min(value, 0.0), max(value, 0.0), value - spread, value + spread)
        left, right, first, last = np.interp(ends, (low, high), (0, 100)).tolist()
        whisker = (first, last - first) if spread else None
        bars.append(Bar(variant.name, text, variant.precision, left, right - left, whisker))
    return BarChart(title, tuple(bars), zero=50.0 if signed else None)


def trade_off_chart(front: ParetoFront) -> Chart | None:
    """Return speed against accuracy; None where fewer than two variants have both."""
    points = front.points
    if len(points) < 2:
        return None
    sizes = [point.variant.engine.bytes if point.variant.engine else 0 for point in points]
    areas = [max(40.0, 420.0 * size / (max(sizes) or 1)) for size in sizes]

    def draw(figure: Figure, axes: Axes) -> None:
        best = [point for point in points if not point.dominated_by]
        xs, ys = [point.ms for point in best], [point.score for point in best]
        axes.plot(xs, ys, color=GREY, linestyle="dashed", linewidth=1.2)
        for point, area in zip(points, areas, strict=True):
            x_error, y_error = point.uncertainty
            colour = PRECISION_COLOURS.get(point.variant.precision, GREY)
            if x_error or y_error:
                # A time stays above zero.
                xerr = [[min(x_error, 0.9 * point.ms)], [x_error]]
                style: Any = {"ecolor": colour, "elinewidth": 1.0, "alpha": 0.6, "fmt": "none"}
                axes.errorbar([point.ms], [point.score], xerr=xerr, yerr=y_error, **style)
            alpha = 0.45 if point.dominated_by else 0.85
            axes.scatter([point.ms], [point.score], s=area, color=colour, alpha=alpha, linewidths=0)
        if front.min_score is not None:
            axes.axhline(front.min_score, color=RED, linewidth=1.2)
        axes.margins(x=0.25, y=0.25)
        _draw_names(figure, axes, points, areas)

    svg = _render_svg(
        draw, "ms per image", _shorten_name(front.score_label, 28), log=True, size=(460, 300)
    )
    return Chart("Speed against accuracy; areas are sizes, lines are uncertainties", svg)


def _draw_names(
    figure: Figure, axes: Axes, points: Sequence[TradeOffPoint], areas: Sequence[float]
) -> None:
    """Write the name beside each point without overlapping other names."""
    # the layout decides the position of a point on the page
    figure.draw_without_rendering()
    pixels = axes.transData.transform([(point.ms, point.score) for point in points])
    places = (pixels * POINTS_PER_INCH / figure.dpi).tolist()
    radii = [area**0.5 / 2 for area in areas]
    taken = [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)
        for (x, y), radius in zip(places, radii, strict=True)
    ]
    for point, radius, (x, y) in zip(points, radii, places, strict=True):
        name = _shorten_name(point.variant.name)
        gap, width = radius + 3, 6.3 * len(name)
        offsets = [(gap, 0.0), (-gap - width, 0.0)]
        offsets += [
            (-width / 2, side * (gap + 6 + 12 * row)) for row in range(4) for side in (1, -1)
        ]
        boxes = {(dx, dy): Bbox.from_bounds(x + dx, y + dy - 6.5, width, 13) for dx, dy in offsets}
        free = (offset for offset, box in boxes.items() if not box.count_overlaps(taken))
        offset = next(free, offsets[-1])
        taken.append(boxes[offset])
        at, alpha = (point.ms, point.score), 0.6 if point.dominated_by else 1.0
        axes.annotate(name, at, offset, textcoords="offset points", va="center", alpha=alpha)


def search_charts(report: Report) -> list[Chart]:
    """Return for each search how the output error falls with more blocks in float."""
    charts = []
    for backend, result in report.mixes.items():
        steps = [result.int8, *result.steps]
        if len(steps) < 3:
            continue
        shares, errors = [100 * step.share for step in steps], [step.distance for step in steps]
        lines = [_line("sets that were tried", shares, errors, GREY, "dotted", "o")]
        if result.chosen is not None:
            share, error = [100 * result.chosen.share], [result.chosen.distance]
            lines.append(_line("the chosen set", share, error, CHOSEN_COLOUR, "solid", "D"))
        title = f"Search for mixed precision on {backend}: cost and gain of blocks in float"
        svg = _line_chart(lines, "in float, % of the compute", "output error against FP32")
        charts.append(Chart(title, svg))
    return charts


def training_charts(report: Report) -> list[Chart]:
    """Return how the outputs of trained engines came nearer to FP32, and how their loss fell."""
    errors, losses = [], []
    for variant in report.variants:
        if (curve := variant.training) is None:
            continue
        name, (colour, style) = variant.name, _look(report, variant)
        best = curve.validation[curve.steps.index(curve.best_step)]
        kept = f"{name}: {'used' if curve.kept else 'best, not used'}"
        errors += [
            _line(name, curve.steps, _finite(curve.validation), colour, style),
            _line(kept, [curve.best_step], _finite([best]), CHOSEN_COLOUR, "none", "D"),
        ]
        losses.append(_line(name, curve.steps, _finite(curve.losses), colour, style))
    if not errors:
        return []
    axis = "training step"
    return [
        Chart(
            "Training: SQNR against FP32 on images held out",
            _line_chart(errors, axis, "SQNR, dB", whole=True),
        ),
        Chart("Training: loss", _line_chart(losses, axis, "loss", whole=True)),
    ]


def _finite(values: Sequence[float]) -> ArrayLike:
    """Return the values without those that cannot be drawn."""
    array = np.array(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def precision_recall_chart(report: Report) -> Chart | None:
    """Return precision by recall at IoU .5 of detectors, None where none was scored."""
    recalls = np.linspace(0, 100, 101)
    rows = [("FP32 ONNX", report.baseline, (GREY, "dotted"))]
    rows += [(v.name, v.accuracy, _look(report, v)) for v in report.variants]
    lines = [
        _line(name, recalls, 100 * np.array(accuracy.curve), *look)
        for name, accuracy, look in rows
        if accuracy is not None and accuracy.curve
    ]
    if not lines:
        return None
    svg = _line_chart(lines, "recall, %", "precision, %")
    return Chart("Precision and recall of all classes at IoU 0.5", svg)


def latency_charts(report: Report) -> list[Chart]:
    """Return for each batch size the cumulative distribution of the latencies."""
    share = np.linspace(0, 100, 120)
    by_batch: dict[int, list[Line2D]] = {}
    for variant in report.variants:
        for latency in _host_latencies(variant):
            ms = np.percentile(latency.samples_ms, share)
            line = _line(variant.name, ms, share, *_look(report, variant))
            by_batch.setdefault(latency.batch, []).append(line)
    labels = ("ms", "runs that took no longer, %")
    return [
        Chart(f"Latency at batch {batch}", _line_chart(lines, *labels, log=True))
        for batch, lines in sorted(by_batch.items())
    ]


def throughput_chart(report: Report) -> Chart | None:
    """Return images per second by batch size; None where only one batch size was timed."""
    lines, most_batches = [], 0
    for variant in report.variants:
        if latencies := _host_latencies(variant):
            batches = [latency.batch for latency in latencies]
            rates = [summarize_latency(latency).images_per_second for latency in latencies]
            lines.append(_line(variant.name, batches, rates, *_look(report, variant), "o"))
            most_batches = max(most_batches, len(batches))
    if most_batches < 2:
        return None
    return Chart("Throughput", _line_chart(lines, "batch", "images per second", log=True))


def layer_error_chart(report: Report) -> Chart | None:
    """Return the errors from layer to layer: those arriving, and those that each layer makes."""
    lines = []
    by_name = {variant.name: variant for variant in report.variants}
    for names, layers in distinct_layers(report.variants):
        colour, style = _look(report, by_name[names.partition(", ")[0]])
        places = range(1, len(layers) + 1)
        errors = np.array([(layer.arriving_db, layer.made_db) for layer in layers], np.float64)
        # zero and infinite errors cannot be drawn
        errors[np.isinf(errors)] = np.nan
        arriving, own = errors.T
        lines.append(_line(f"{names}: arriving", places, arriving, colour, style))
        marker = LINE_STYLES[style]
        lines.append(_line(f"{names}: made here", places, own, colour, "none", marker))
    if not lines:
        return None
    x = "layer, in the order of the network"
    svg = _line_chart(lines, x, "SQNR, dB", whole=True, size=(920, 340))
    return Chart("SQNR from layer to layer; lower is worse", svg, wide=True)


@lru_cache(maxsize=CACHE_SIZE)
def range_histogram(tensor: TensorRange) -> str:
    """Return the values of a tensor on a log scale, and the range that each method chooses."""

    def draw(_: Figure, axes: Axes) -> None:
        lowest = min((share for share in tensor.shares if share > 0), default=1e-6)
        heights = [max(share, lowest / 3) for share in tensor.shares]
        edges = np.linspace(tensor.low, tensor.high, len(heights) + 1).tolist()
        axes.stairs(heights, edges, fill=True, color="#8aa4bd")
        axes.set_yscale("log")
        axes.set_ylim(lowest / 3, 1.5)
        for interval in tensor.kept:
            for end in (interval.low, interval.high):
                colour = METHOD_COLOURS.get(interval.method, GREY)
                axes.axvline(end, color=colour, linewidth=1.1)
        for end in (tensor.chosen.low, tensor.chosen.high):
            axes.axvline(end, color=CHOSEN_COLOUR, linewidth=2.2)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_percent(100 * value)))

    return _render_svg(draw)


@lru_cache(maxsize=CACHE_SIZE)
def weight_chart(weights: WeightRange) -> str:
    """Return the largest weight of each channel."""

    def draw(_: Figure, axes: Axes) -> None:
        # The values are evenly spread over the channels.
        step = (weights.channels - 1) / max(1, len(weights.largest) - 1)
        places = [1 + index * step for index in range(len(weights.largest))]
        axes.fill_between(
            places, weights.largest, color=ORANGE, alpha=0.75, linewidth=0, step="mid"
        )
        axes.set_ylim(bottom=0)
        axes.set_xlim(1, max(2, weights.channels))

    return _render_svg(draw, whole=True)


def _host_latencies(variant: VariantResult) -> list[Latency]:
    timed = (t for t in variant.latency if t.samples_ms and t.where == "host")
    return sorted(timed, key=lambda latency: latency.batch)


def _look(report: Report, variant: VariantResult) -> tuple[str, str]:
    """Return the colour of a precision and the line style of a backend."""
    backends = list(dict.fromkeys(other.backend for other in report.variants))
    style = list(LINE_STYLES)[backends.index(variant.backend) % len(LINE_STYLES)]
    return PRECISION_COLOURS.get(variant.precision, GREY), style


def _line(
    name: str, xs: ArrayLike, ys: ArrayLike, colour: str, style: str, marker: str | None = None
) -> Line2D:
    look: Any = {"color": colour, "linestyle": style, "linewidth": 1.6, "marker": marker}
    return Line2D(xs, ys, label=_shorten_name(name), markersize=4, **look)


def _line_chart(lines: Sequence[Line2D], x: str, y: str, **options: Any) -> str:
    """Draw lines with a legend, which is below the chart if there are many lines."""

    def draw(figure: Figure, axes: Axes) -> None:
        for line in lines:
            axes.add_line(line)
        axes.autoscale_view()
        if len(lines) > 3:
            figure.legend(loc="outside lower center", ncols=3, handlelength=2.2, fontsize=9.5)
        elif len(lines) > 1:
            axes.legend(loc="best", handlelength=2.2, fontsize=9.5)

    return _render_svg(draw, x, y, **{"size": (460, 280), **options})


def _render_svg(
    draw: Callable[[Figure, Axes], None],
    x: str = "",
    y: str = "",
    *,
    log: bool = False,
    whole: bool = False,
    size: tuple[int, int] = SMALL_SIZE,
) -> str:
    """Return what `draw` draws; with `log` x is logarithmic, with `whole` its ticks are whole."""
    with mpl.rc_context(RC_PARAMS):
        inches = (size[0] / POINTS_PER_INCH, size[1] / POINTS_PER_INCH)
        # A constrained layout takes as long as the drawing; small charts have a fixed one.
        if size == SMALL_SIZE:
            figure = Figure(inches)
            axes = figure.add_axes((0.19, 0.14, 0.78, 0.82))
        else:
            figure = Figure(inches, layout="constrained")
            axes = figure.subplots()
        axes.set_xscale("log" if log else "linear")
        draw(figure, axes)
        axes.set(xlabel=x, ylabel=y)
        if log:
            # Ticks at 1, 2, 5, 10 and so on, not at powers of ten.
            axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        text = io.StringIO()
        with warnings.catch_warnings():
            # The font of the page has the glyphs that Matplotlib's lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(text, format="svg", metadata={"Date": None})
    return _inline_svg(text.getvalue())


def _inline_svg(svg: str) -> str:
    """Return an SVG as inline markup: without head, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + body
    svg = svg.replace(INK_COLOUR, "currentColor").replace(LINE_COLOUR, "var(--line)")
    # The page's own font, and no ids but those that are referred to.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    used = {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'xlink:href="#([^"]+)"', svg)}
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _shorten_name(name: str, limit: int = MAX_NAME_LENGTH) -> str:
    text = " ".join(sanitize_text(name).split())
    end = limit // 3
    return text if len(text) <= limit else f"{text[: limit - end - 1]}…{text[-end:]}"


def format_percent(value: float) -> str:
    """Format a percentage, a tiny one as a power of ten."""
    if value >= 0.001:
        return f"{value:g} %"
    power = round(float(np.log10(value)))
    return f"10{str(power).replace('-', '⁻').translate(SUPERSCRIPT)} %"
