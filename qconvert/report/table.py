"""A table as a value, which the terminal, Markdown and HTML renderers draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, TypeVar

T = TypeVar("T")

BAR_BLOCKS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH = 8
MISSING = "—"
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class TextColumn:
    """A column; a narrow terminal drops the columns of the highest `rank` first."""

    title: str
    justify: Literal["left", "right"] = "left"
    rank: int = 0
    wrap: bool = False


@dataclass(frozen=True)
class TextTable:
    """Rows of text under columns; each of the `footnotes` begins with its number."""

    columns: Sequence[TextColumn]
    rows: Sequence[Sequence[str]]
    title: str = ""
    footnotes: Sequence[str] = ()


class Footnotes(dict[str, str]):
    """The footnotes of one table, with their superscript numbers; equal texts share one."""

    def mark(self, text: str) -> str:
        """Return the number of a footnote."""
        return self.setdefault(text, str(len(self) + 1).translate(SUPERSCRIPT))

    def cell(self, value: T | None, write: Callable[[T], str], reason: str) -> str:
        """Return a value as text, or the mark of a missing one with the number of its reason."""
        return MISSING + self.mark(reason) if value is None else write(value)

    def texts(self) -> tuple[str, ...]:
        """Return the footnotes in order, each behind its number."""
        return tuple(f"{number} {text}" for text, number in self.items())


def make_columns(layout: str, *titles: str) -> tuple[TextColumn, ...]:
    """Return columns by a layout such as `l w r2`: left, left and wrapped, or right, and a rank.

    The columns behind those of the layout are numbers: right, and of rank 0.
    """
    return tuple(
        TextColumn(title, "right" if code[0] == "r" else "left", int(code[1:] or 0), code[0] == "w")
        for title, code in zip_longest(titles, layout.split(), fillvalue="r")
    )


def optional_cell(value: T | None, write: Callable[[T], str], missing: str = "") -> str:
    """Return a value as text, or `missing` for None."""
    return missing if value is None else write(value)


def text_bar(fraction: float) -> str:
    """Draw a fraction of a full bar with block characters."""
    eighths = round(max(0.0, min(1.0, fraction)) * BAR_WIDTH * 8)
    return (BAR_BLOCKS[8] * (eighths // 8) + BAR_BLOCKS[eighths % 8]).rstrip()


def bar_fraction(text: str) -> float | None:
    """Return the fraction that `text_bar` drew, or None where the text is not a bar."""
    if not text or set(text) - set(BAR_BLOCKS[1:]):
        return None
    return sum(BAR_BLOCKS.index(block) for block in text) / (8 * BAR_WIDTH)
