"""A table as a value: what terminal, Markdown and HTML draw, each in its way."""

from dataclasses import dataclass
from typing import Literal

BAR_BLOCKS = " ▏▎▍▌▋▊▉█"

BAR_WIDTH = 8

MISSING = "—"
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class TableColumn:
    """A column; those of the highest `rank` are dropped first where there is no room."""

    title: str
    justify: Literal["left", "right"] = "left"
    rank: int = 0
    wrap: bool = False


@dataclass(frozen=True)
class ReportTable:
    """Rows of text under columns; each of the `footnotes` begins with its number."""

    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()


class Footnotes:
    """Remarks of one table; each text has one number, however often it is referred to."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the raised number of a remark."""
        if text not in self._texts:
            self._texts.append(text)
        return _superscript(self._texts.index(text) + 1)

    def missing(self, why: str) -> str:
        """Return the sign of what is not there, with the number of its reason."""
        return MISSING + self.mark(why)

    def texts(self) -> tuple[str, ...]:
        """Return the remarks in their order, each behind its number."""
        return tuple(f"{_superscript(number)} {text}" for number, text in enumerate(self._texts, 1))


def number_columns(*titles: str) -> tuple[TableColumn, ...]:
    """Return columns of numbers."""
    return tuple(TableColumn(title, "right") for title in titles)


def _superscript(number: int) -> str:
    return str(number).translate(SUPERSCRIPT)


def text_bar(part: float) -> str:
    """Draw a share of a bar with blocks."""
    eighths = round(max(0.0, min(1.0, part)) * BAR_WIDTH * 8)
    return (BAR_BLOCKS[8] * (eighths // 8) + BAR_BLOCKS[eighths % 8]).rstrip()


def bar_fraction(drawn: str) -> float | None:
    """Return the share that a bar stands for, None where it is none."""
    if not drawn or set(drawn) - set(BAR_BLOCKS[1:]):
        return None
    return sum(BAR_BLOCKS.index(each) for each in drawn) / (8 * BAR_WIDTH)
