"""A table as a value, which the terminal, Markdown and HTML renderers draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


class Footnotes:
    """The footnotes of one table; equal texts share a number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the superscript number of a footnote."""
        if text not in self._texts:
            self._texts.append(text)
        return str(self._texts.index(text) + 1).translate(SUPERSCRIPT)

    def missing(self, reason: str) -> str:
        """Return the mark of a missing value, with the number of its reason."""
        return MISSING + self.mark(reason)

    def cell(self, value: T | None, write: Callable[[T], str], reason: str) -> str:
        """Return a value as text, or the mark of a missing one with its reason."""
        return self.missing(reason) if value is None else write(value)

    def texts(self) -> tuple[str, ...]:
        """Return the footnotes in order, each behind its number."""
        return tuple(f"{self.mark(text)} {text}" for text in self._texts)


def text_columns(*titles: str, wrap: bool = False) -> tuple[TextColumn, ...]:
    """Return left-aligned columns."""
    return tuple(TextColumn(title, wrap=wrap) for title in titles)


def number_columns(*titles: str, rank: int = 0) -> tuple[TextColumn, ...]:
    """Return right-aligned columns."""
    return tuple(TextColumn(title, "right", rank) for title in titles)


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
