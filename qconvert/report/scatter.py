"""Points with their names and how sure they are, each name where there is room."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qconvert.report.plots import POINTS, Axis, Series, drawn, shown

BAD = "#d6452b"


@dataclass(frozen=True)
class Dot:
    """A labelled point, its area in square points, and how far off it may be along both axes."""

    name: str
    x: float
    y: float
    area: float
    colour: str
    off: tuple[float, float] = (0.0, 0.0)
    faint: bool = False


def scatter(
    dots: Sequence[Dot], front: Series, axis: tuple[Axis, Axis], limit: float | None = None
) -> str:
    """Draw points with their names, a line along the best, and one for the least allowed."""

    def draw(axes: Axes) -> None:
        axes.plot(front.xs, front.ys, color=front.colour, linestyle="dashed", linewidth=1.2)
        for each in dots:
            _unsure(axes, each)
            axes.scatter(
                [each.x],
                [each.y],
                s=each.area,
                color=each.colour,
                alpha=0.45 if each.faint else 0.85,
                linewidths=0,
            )
        if limit is not None:
            axes.axhline(limit, color=BAD, linewidth=1.2)
        axes.margins(x=0.25, y=0.25)
        _named(axes, dots)

    return drawn(draw, axis, (460, 300))


def _unsure(axes: Axes, dot: Dot) -> None:
    """Draw how far off a point may be; a time stays above nothing."""
    along, across = dot.off
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


def _named(axes: Axes, dots: Sequence[Dot]) -> None:
    """Write each name beside its point, where no other name stands yet."""
    # Only the layout tells where on the paper a point lies.
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    pixels = axes.transData.transform([(each.x, each.y) for each in dots])
    places = [(x * POINTS / figure.dpi, y * POINTS / figure.dpi) for x, y in pixels.tolist()]
    radii = [each.area**0.5 / 2 for each in dots]
    taken = [(x - r, y, 2 * r, 2 * r) for (x, y), r in zip(places, radii, strict=True)]
    for each, (x, y) in zip(dots, places, strict=True):
        far = each.area**0.5 / 2 + 3
        wide = 6.3 * len(shown(each.name))
        options = [(far, 0.0), (-far - wide, 0.0)]
        options += [
            (-wide / 2, side * (far + 6 + 12 * row)) for row in range(4) for side in (1, -1)
        ]
        dx, dy = next(
            (
                (dx, dy)
                for dx, dy in options
                if not any(_meets((x + dx, y + dy, wide, 13), other) for other in taken)
            ),
            options[-1],
        )
        taken.append((x + dx, y + dy, wide, 13))
        axes.annotate(
            shown(each.name),
            (each.x, each.y),
            xytext=(dx, dy),
            textcoords="offset points",
            va="center",
            alpha=0.6 if each.faint else 1.0,
        )


def _meets(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes of left, middle, width and height overlap."""
    across = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
    return across and abs(a[1] - b[1]) < (a[3] + b[3]) / 2
