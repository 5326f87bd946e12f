"""Line, area and scatter charts as SVG to stand inside a page, drawn by Matplotlib.

Text has the page's colour and font, so that a chart reads in light and dark alike. Equal figures
give equal bytes.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from qconvert.core.sanitize import sanitize_text
from qconvert.report.table import SUPERSCRIPT

logging.getLogger("matplotlib").setLevel(logging.ERROR)

# Placeholders that `inline_svg` replaces by the colours of the page.
INK_COLOUR, LINE_COLOUR = "#010203", "#040506"
LIMIT_COLOUR = "#d6452b"
RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qconvert",
    "text.parse_math": False,
    "font.size": 10.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE_COLOUR,
    "grid.color": LINE_COLOUR,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK_COLOUR),
    **{f"{axis}tick.{kind}.size": 0.0 for axis in "xy" for kind in ("major", "minor")},
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
POINTS_PER_INCH = 72
# With more lines the legend stands below the chart.
MAX_INNER_LEGEND = 3
MAX_NAME_LENGTH = 48
# Width and height of small charts, and their axes as fractions: left, bottom, width, height.
SMALL_SIZE = (300, 150)
SMALL_AXES = (0.19, 0.14, 0.78, 0.82)
MIN_DECIMAL_PERCENT = 0.001


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    line_style: str = "solid"
    marker: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis with its label; `whole` axes have ticks at whole numbers only."""

    label: str = ""
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class ScatterPoint:
    """A labelled point, its area in square points, and its uncertainty along both axes."""

    name: str
    x: float
    y: float
    area: float
    colour: str
    uncertainty: tuple[float, float] = (0.0, 0.0)
    faint: bool = False


def line_chart(
    series: Sequence[Series], x: Axis, y: Axis, size: tuple[int, int] = (460, 280)
) -> str:
    """Draw lines with a legend."""

    def draw(axes: Axes) -> None:
        for line in series:
            axes.plot(
                line.xs,
                line.ys,
                color=line.colour,
                linestyle=line.line_style,
                marker=line.marker or None,
                markersize=4,
                linewidth=1.6,
                label=shorten_name(line.name),
            )
        if len(series) > MAX_INNER_LEGEND:
            _figure_of(axes).legend(
                loc="outside lower center", ncols=3, handlelength=2.2, fontsize=9.5
            )
        elif len(series) > 1:
            axes.legend(loc="best", handlelength=2.2, fontsize=9.5)

    return render_svg(draw, x, y, size)


def histogram(
    edges: Sequence[float], shares: Sequence[float], marks: Sequence[tuple[float, float, str, bool]]
) -> str:
    """Draw shares of values on a log scale; `marks` are ranges: low, high, colour, thick."""

    def draw(axes: Axes) -> None:
        lowest = min((share for share in shares if share > 0), default=1e-6)
        heights = [max(share, lowest / 3) for share in shares]
        axes.stairs(heights, edges, fill=True, color="#8aa4bd")
        axes.set_yscale("log")
        axes.set_ylim(lowest / 3, 1.5)
        for low, high, colour, thick in marks:
            for end in (low, high):
                axes.axvline(end, color=colour, linewidth=2.2 if thick else 1.1)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_percent(100 * value)))

    return render_svg(draw, Axis(), Axis(), SMALL_SIZE)


def area_chart(values: Sequence[float], count: int) -> str:
    """Draw an area under values that are evenly spread over the places 1 to `count`."""

    def draw(axes: Axes) -> None:
        step = (count - 1) / max(1, len(values) - 1)
        places = [1 + index * step for index in range(len(values))]
        axes.fill_between(places, values, color="#e07b24", alpha=0.75, linewidth=0, step="mid")
        axes.set_ylim(bottom=0)
        axes.set_xlim(1, max(2, count))

    return render_svg(draw, Axis(whole=True), Axis(), SMALL_SIZE)


def scatter_chart(
    points: Sequence[ScatterPoint],
    front: Series,
    axes: tuple[Axis, Axis],
    limit: float | None = None,
) -> str:
    """Draw points with their names, a line along the front, and one for the lowest score."""

    def draw(axes: Axes) -> None:
        axes.plot(front.xs, front.ys, color=front.colour, linestyle="dashed", linewidth=1.2)
        for point in points:
            x_error, y_error = point.uncertainty
            if x_error or y_error:
                axes.errorbar(
                    [point.x],
                    [point.y],
                    # A time stays above zero.
                    xerr=[[min(x_error, 0.9 * point.x)], [x_error]],
                    yerr=y_error,
                    ecolor=point.colour,
                    elinewidth=1.0,
                    alpha=0.6,
                    fmt="none",
                )
            axes.scatter(
                [point.x],
                [point.y],
                s=point.area,
                color=point.colour,
                alpha=0.45 if point.faint else 0.85,
                linewidths=0,
            )
        if limit is not None:
            axes.axhline(limit, color=LIMIT_COLOUR, linewidth=1.2)
        axes.margins(x=0.25, y=0.25)
        _draw_names(axes, points)

    return render_svg(draw, *axes, (460, 300))


def _draw_names(axes: Axes, points: Sequence[ScatterPoint]) -> None:
    """Write the name beside each point, where no other name stands yet."""
    # The layout decides where a point lies on the page.
    figure = _figure_of(axes)
    figure.draw_without_rendering()
    pixels = axes.transData.transform([(point.x, point.y) for point in points])
    places = (pixels * POINTS_PER_INCH / figure.dpi).tolist()
    radii = [point.area**0.5 / 2 for point in points]
    taken = [(x - r, y, 2 * r, 2 * r) for (x, y), r in zip(places, radii, strict=True)]
    for point, radius, (x, y) in zip(points, radii, places, strict=True):
        name = shorten_name(point.name)
        gap, width = radius + 3, 6.3 * len(name)
        offsets = [(gap, 0.0), (-gap - width, 0.0)]
        offsets += [
            (-width / 2, side * (gap + 6 + 12 * row)) for row in range(4) for side in (1, -1)
        ]
        free = (
            (dx, dy)
            for dx, dy in offsets
            if not any(_overlap((x + dx, y + dy, width, 13), box) for box in taken)
        )
        dx, dy = next(free, offsets[-1])
        taken.append((x + dx, y + dy, width, 13))
        axes.annotate(
            name,
            (point.x, point.y),
            xytext=(dx, dy),
            textcoords="offset points",
            va="center",
            alpha=0.6 if point.faint else 1.0,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Return whether two boxes of left, middle, width and height overlap."""
    horizontally = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
    return horizontally and abs(a[1] - b[1]) < (a[3] + b[3]) / 2


def render_svg(draw: Callable[[Axes], None], x: Axis, y: Axis, size: tuple[int, int]) -> str:
    """Return what `draw` draws on two axes."""
    small = size == SMALL_SIZE
    with mpl.rc_context(RC_PARAMS):
        figure = Figure(
            figsize=(size[0] / POINTS_PER_INCH, size[1] / POINTS_PER_INCH),
            layout=None if small else "constrained",
        )
        # A constrained layout takes as long as the drawing; small charts have a fixed one.
        axes = figure.add_axes(SMALL_AXES) if small else figure.subplots()
        if x.log:
            axes.set_xscale("log")
        if y.log:
            axes.set_yscale("log")
        draw(axes)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        for ticks, axis in ((axes.xaxis, x), (axes.yaxis, y)):
            if axis.log:
                # Ticks at 1, 2, 5, 10 and so on, not at powers of ten.
                ticks.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
                ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                ticks.set_minor_formatter(NullFormatter())
        if not x.log:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=x.whole))
        text = io.StringIO()
        with warnings.catch_warnings():
            # The font of the page has the glyphs that Matplotlib's lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(text, format="svg", metadata={"Date": None})
    return inline_svg(text.getvalue())


def inline_svg(svg: str) -> str:
    """Return an SVG file as it stands inside a page: without head, in the page's colours."""
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


def shorten_name(name: str) -> str:
    """Return a name that fits a chart."""
    text = " ".join(sanitize_text(name).split())
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[: MAX_NAME_LENGTH - 17]}…{text[-16:]}"


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _format_percent(value: float) -> str:
    """Format a percentage, a tiny one as a power of ten."""
    if value >= MIN_DECIMAL_PERCENT:
        return f"{value:g} %"
    power = round(float(np.log10(value)))
    return f"10{str(power).replace('-', '⁻').translate(SUPERSCRIPT)} %"
