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

from qconvert.plain import plain
from qconvert.report.sheet import SUPERSCRIPT

logging.getLogger("matplotlib").setLevel(logging.ERROR)

# Stand-ins that the page replaces by colours of its own.
INK, LINE = "#010203", "#040506"
PLAIN: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qconvert",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 10.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
POINTS = 72
# More lines than these have their names below the chart.
MOST_INSIDE = 3
# Letters of a name.
ROOM = 48
# Width and height of small charts, and where in them the axes stand: left, bottom, width, height.
SMALL = (300, 150)
INSIDE = (0.19, 0.14, 0.78, 0.82)
LEAST_PLAIN = 0.001


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dash: str = "solid"
    marker: str = ""


@dataclass(frozen=True)
class Axis:
    """What stands along a side; it may be logarithmic, or have whole numbers alone."""

    label: str
    log: bool = False
    whole: bool = False


def lines(series: Sequence[Series], x: Axis, y: Axis, size: tuple[int, int] = (460, 280)) -> str:
    """Draw lines with a legend."""

    def draw(axes: Axes) -> None:
        for each in series:
            axes.plot(
                each.xs,
                each.ys,
                color=each.colour,
                linestyle=each.dash,
                marker=each.marker or None,
                markersize=4,
                linewidth=1.6,
                label=shown(each.name),
            )
        if len(series) > MOST_INSIDE:
            figure = axes.get_figure()
            assert isinstance(figure, Figure)
            figure.legend(loc="outside lower center", ncols=3, handlelength=2.2, fontsize=9.5)
        elif len(series) > 1:
            axes.legend(loc="best", handlelength=2.2, fontsize=9.5)

    return drawn(draw, (x, y), size)


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
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(100 * value)))

    return drawn(draw, (Axis(""), Axis(label, log=False)), SMALL)


def fall(values: Sequence[float], count: int, label: str) -> str:
    """Draw values that fall from left to right as an area."""

    def draw(axes: Axes) -> None:
        step = (count - 1) / max(1, len(values) - 1)
        places = [1 + at * step for at in range(len(values))]
        axes.fill_between(places, values, color="#e07b24", alpha=0.75, linewidth=0, step="mid")
        axes.set_ylim(bottom=0)
        axes.set_xlim(1, max(2, count))

    return drawn(draw, (Axis("", whole=True), Axis(label)), SMALL)


def drawn(draw: Callable[[Axes], None], axis: tuple[Axis, Axis], size: tuple[int, int]) -> str:
    """Return what `draw` draws between two axes."""
    small = size == SMALL
    with mpl.rc_context(PLAIN):
        figure = Figure(
            figsize=(size[0] / POINTS, size[1] / POINTS), layout=None if small else "constrained"
        )
        # To lay out what is known takes as long as to draw it.
        axes = figure.add_axes(INSIDE) if small else figure.subplots()
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
                _plain_ticks(each)
        if not x.log:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=x.whole))
        text = io.StringIO()
        with warnings.catch_warnings():
            # The page's own font has the letters that Matplotlib's has not.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(text, format="svg", metadata={"Date": None})
    return inline(text.getvalue())


def inline(svg: str) -> str:
    """Return an SVG file as it stands inside a page: without head, and in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace(LINE, "var(--line)")
    # The page's own font, and no names but those that something refers to.
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    used = {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'xlink:href="#([^"]+)"', svg)}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def shown(name: str) -> str:
    """Return a name as a chart has room for it."""
    text = " ".join(plain(name).split())
    return text if len(text) <= ROOM else f"{text[: ROOM - 17]}…{text[-16:]}"


def _percent(value: float) -> str:
    """Write a percentage, a tiny one as a power of ten."""
    if value >= LEAST_PLAIN:
        return f"{value:g} %"
    power = round(float(np.log10(value)))
    return f"10{str(power).replace('-', '⁻').translate(SUPERSCRIPT)} %"


def _plain_ticks(axis: Any) -> None:
    """Write 1, 2, 5, 10 and so on; powers of ten are for others."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
