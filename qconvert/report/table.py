"""A table as a value, which the terminal, Markdown and HTML each draw in their own way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
        return _superscript(self._texts.index(text) + 1)

    def missing(self, reason: str) -> str:
        """Return the mark of a missing value, with the number of its reason."""
        return MISSING + self.mark(reason)

    def texts(self) -> tuple[str, ...]:
        """Return the footnotes in order, each behind its number."""
        return tuple(f"{_superscript(number)} {text}" for number, text in enumerate(self._texts, 1))


def number_columns(*titles: str) -> tuple[TextColumn, ...]:
    """Return right-aligned columns."""
    return tuple(TextColumn(title, "right") for title in titles)


def text_bar(fraction: float) -> str:
    """Draw a fraction of a full bar with block characters."""
    eighths = round(max(0.0, min(1.0, fraction)) * BAR_WIDTH * 8)
    return (BAR_BLOCKS[8] * (eighths // 8) + BAR_BLOCKS[eighths % 8]).rstrip()


def bar_fraction(text: str) -> float | None:
    """Return the fraction that `text_bar` drew, or None where the text is not a bar."""
    if not text or set(text) - set(BAR_BLOCKS[1:]):
        return None
    return sum(BAR_BLOCKS.index(block) for block in text) / (8 * BAR_WIDTH)


def _superscript(number: int) -> str:
    return str(number).translate(SUPERSCRIPT)
