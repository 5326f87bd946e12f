"""A table as a value: what terminal, Markdown and HTML draw, each in its way."""

from dataclasses import dataclass
from typing import Literal

MISSING = "—"
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """A column; those of the highest `rank` are dropped first where there is no room."""

    title: str
    justify: Literal["left", "right"] = "left"
    rank: int = 0
    wrap: bool = False


@dataclass(frozen=True)
class Sheet:
    """Rows of text under columns; each of the `footnotes` begins with its number."""

    title: str
    columns: tuple[Column, ...]
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
        return _raised(self._texts.index(text) + 1)

    def missing(self, why: str) -> str:
        """Return the sign of what is not there, with the number of its reason."""
        return MISSING + self.mark(why)

    def texts(self) -> tuple[str, ...]:
        """Return the remarks in their order, each behind its number."""
        return tuple(f"{_raised(number)} {text}" for number, text in enumerate(self._texts, 1))


def right(*titles: str) -> tuple[Column, ...]:
    """Return columns of numbers."""
    return tuple(Column(title, "right") for title in titles)


def _raised(number: int) -> str:
    return str(number).translate(SUPERSCRIPT)
