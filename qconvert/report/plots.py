"""Charts as SVG to stand inside a page, by Matplotlib.

Text has the page's colour and font, so that a chart reads in light and dark alike. The same
figures give the same bytes.
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

# Stand-ins that the page replaces by colours of its own.
INK_COLOUR, LINE_COLOUR = "#010203", "#040506"
RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qconvert",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 10.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": LINE_COLOUR,
    "axes.labelcolor": INK_COLOUR,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE_COLOUR,
    "grid.linewidth": 0.6,
    "text.color": INK_COLOUR,
    "xtick.color": INK_COLOUR,
    "ytick.color": INK_COLOUR,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
POINTS_PER_INCH = 72
# More lines than these have their names below the chart.
MAX_INNER_LEGEND = 3
# Letters of a name.
MAX_NAME_LENGTH = 48
# Width and height of small charts, and where in them the axes stand: left, bottom, width, height.
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
    """What stands along a side; it may be logarithmic, or have whole numbers alone."""

    label: str
    log: bool = False
    whole: bool = False


def line_chart(
    series: Sequence[Series], x: Axis, y: Axis, size: tuple[int, int] = (460, 280)
) -> str:
    """Draw lines with a legend."""

    def draw(axes: Axes) -> None:
        for each in series:
            axes.plot(
                each.xs,
                each.ys,
                color=each.colour,
                linestyle=each.line_style,
                marker=each.marker or None,
                markersize=4,
                linewidth=1.6,
                label=shorten_name(each.name),
            )
        if len(series) > MAX_INNER_LEGEND:
            figure = axes.get_figure()
            assert isinstance(figure, Figure)
            figure.legend(loc="outside lower center", ncols=3, handlelength=2.2, fontsize=9.5)
        elif len(series) > 1:
            axes.legend(loc="best", handlelength=2.2, fontsize=9.5)

    return render_svg(draw, (x, y), size)


def histogram(
    edges: Sequence[float],
    shares: Sequence[float],
    marks: Sequence[tuple[float, float, str, bool]],
    label: str,
) -> str:
    """Draw shares of values on a log scale; `marks` are ranges, the last one the chosen."""

    def draw(axes: Axes) -> None:
        least = min((each for each in shares if each > 0), default=1e-6)
        axes.stairs([max(each, least / 3) for each in shares], edges, fill=True, color="#8aa4bd")
        axes.set_yscale("log")
        axes.set_ylim(least / 3, 1.5)
        for low, high, colour, thick in marks:
            for end in (low, high):
                axes.axvline(end, color=colour, linewidth=2.2 if thick else 1.1)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_percent(100 * value)))

    return render_svg(draw, (Axis(""), Axis(label, log=False)), SMALL_SIZE)


def area_chart(values: Sequence[float], count: int, label: str) -> str:
    """Draw values that fall from left to right as an area."""

    def draw(axes: Axes) -> None:
        step = (count - 1) / max(1, len(values) - 1)
        places = [1 + at * step for at in range(len(values))]
        axes.fill_between(places, values, color="#e07b24", alpha=0.75, linewidth=0, step="mid")
        axes.set_ylim(bottom=0)
        axes.set_xlim(1, max(2, count))

    return render_svg(draw, (Axis("", whole=True), Axis(label)), SMALL_SIZE)


def render_svg(draw: Callable[[Axes], None], axis: tuple[Axis, Axis], size: tuple[int, int]) -> str:
    """Return what `draw` draws between two axes."""
    small = size == SMALL_SIZE
    with mpl.rc_context(RC_PARAMS):
        figure = Figure(
            figsize=(size[0] / POINTS_PER_INCH, size[1] / POINTS_PER_INCH),
            layout=None if small else "constrained",
        )
        # To lay out what is known takes as long as to draw it.
        axes = figure.add_axes(SMALL_AXES) if small else figure.subplots()
        x, y = axis
        if x.log:
            axes.set_xscale("log")
        if y.log:
            axes.set_yscale("log")
        draw(axes)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        for each, side in ((axes.xaxis, x), (axes.yaxis, y)):
            if side.log:
                _decimal_ticks(each)
        if not x.log:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=x.whole))
        text = io.StringIO()
        with warnings.catch_warnings():
            # The page's own font has the letters that Matplotlib's has not.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(text, format="svg", metadata={"Date": None})
    return inline_svg(text.getvalue())


def inline_svg(svg: str) -> str:
    """Return an SVG file as it stands inside a page: without head, and in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK_COLOUR, "currentColor").replace(LINE_COLOUR, "var(--line)")
    # The page's own font, and no names but those that something refers to.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    used = {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'xlink:href="#([^"]+)"', svg)}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def shorten_name(name: str) -> str:
    """Return a name as a chart has room for it."""
    text = " ".join(sanitize_text(name).split())
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[: MAX_NAME_LENGTH - 17]}…{text[-16:]}"


def _format_percent(value: float) -> str:
    """Write a percentage, a tiny one as a power of ten."""
    if value >= MIN_DECIMAL_PERCENT:
        return f"{value:g} %"
    power = round(float(np.log10(value)))
    return f"10{str(power).replace('-', '⁻').translate(SUPERSCRIPT)} %"


def _decimal_ticks(axis: Any) -> None:
    """Write 1, 2, 5, 10 and so on; powers of ten are for others."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


LIMIT_COLOUR = "#d6452b"


@dataclass(frozen=True)
class ScatterPoint:
    """A labelled point, its area in square points, and how far off it may be along both axes."""

    name: str
    x: float
    y: float
    area: float
    colour: str
    uncertainty: tuple[float, float] = (0.0, 0.0)
    faint: bool = False


def scatter_chart(
    dots: Sequence[ScatterPoint], front: Series, axis: tuple[Axis, Axis], limit: float | None = None
) -> str:
    """Draw points with their names, a line along the best, and one for the least allowed."""

    def draw(axes: Axes) -> None:
        axes.plot(front.xs, front.ys, color=front.colour, linestyle="dashed", linewidth=1.2)
        for each in dots:
            _draw_error_bars(axes, each)
            axes.scatter(
                [each.x],
                [each.y],
                s=each.area,
                color=each.colour,
                alpha=0.45 if each.faint else 0.85,
                linewidths=0,
            )
        if limit is not None:
            axes.axhline(limit, color=LIMIT_COLOUR, linewidth=1.2)
        axes.margins(x=0.25, y=0.25)
        _draw_names(axes, dots)

    return render_svg(draw, axis, (460, 300))


def _draw_error_bars(axes: Axes, dot: ScatterPoint) -> None:
    """Draw how far off a point may be; a time stays above nothing."""
    along, across = dot.uncertainty
    sides = [[min(along, 0.9 * dot.x)], [along]]
    if along or across:
        axes.errorbar(
            [dot.x],
            [dot.y],
            xerr=sides,
            yerr=across,
            ecolor=dot.colour,
            elinewidth=1.0,
            alpha=0.6,
            fmt="none",
        )


def _draw_names(axes: Axes, dots: Sequence[ScatterPoint]) -> None:
    """Write each name beside its point, where no other name stands yet."""
    # Only the layout tells where on the paper a point lies.
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    pixels = axes.transData.transform([(each.x, each.y) for each in dots])
    places = [
        (x * POINTS_PER_INCH / figure.dpi, y * POINTS_PER_INCH / figure.dpi)
        for x, y in pixels.tolist()
    ]
    radii = [each.area**0.5 / 2 for each in dots]
    taken = [(x - r, y, 2 * r, 2 * r) for (x, y), r in zip(places, radii, strict=True)]
    for each, (x, y) in zip(dots, places, strict=True):
        far = each.area**0.5 / 2 + 3
        wide = 6.3 * len(shorten_name(each.name))
        options = [(far, 0.0), (-far - wide, 0.0)]
        options += [
            (-wide / 2, side * (far + 6 + 12 * row)) for row in range(4) for side in (1, -1)
        ]
        dx, dy = next(
            (
                (dx, dy)
                for dx, dy in options
                if not any(_overlap((x + dx, y + dy, wide, 13), other) for other in taken)
            ),
            options[-1],
        )
        taken.append((x + dx, y + dy, wide, 13))
        axes.annotate(
            shorten_name(each.name),
            (each.x, each.y),
            xytext=(dx, dy),
            textcoords="offset points",
            va="center",
            alpha=0.6 if each.faint else 1.0,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes of left, middle, width and height overlap."""
    across = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
    return across and abs(a[1] - b[1]) < (a[3] + b[3]) / 2
