"""Every mistake in a settings file in words: where it stands, what is wrong, what was meant."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import pydantic

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"^\s*({_DOTTED})\s*=(.*)$")

Path = tuple[str, ...]

# What pydantic calls by its Python name.
WORDS = {
    "tuple_type": "Input should be a list",
    "dataclass_type": "Input should be a table",
    "too_short": "Input should name at least one",
}


def explain(
    error: pydantic.ValidationError,
    text: str,
    given: tuple[str, Mapping[str, object]],
    keys_at: Callable[[Path], Sequence[str]],
) -> list[str]:
    """Return one line a mistake, in the order of the file, then of what was given elsewhere.

    `given` says where that was, and what.
    """
    lines = _lines(text)
    told: dict[tuple[int, str, str], list[str]] = {}
    for problem in error.errors(include_url=False):
        path = _named(problem["loc"], keys_at)
        name = ".".join(path)
        line = _nearest(lines, path)
        where = f"line {line}" if line else "settings"
        if any(_one_way(key, name) or _one_way(name, key) for key in given[1]):
            line, where = len(text) + 1, given[0]
        found = told.setdefault((line, where, name), [])
        # A list whose items are all refused is also told to be too short.
        if problem["type"] != "too_short" or not found:
            found.append(_words(problem, path, keys_at))
    # A value that may be of two kinds is wrong twice, once for each; that is one mistake.
    return [
        f"{where}: {name}: {', or: '.join(told[key])}"
        for key in sorted(told)
        for _, where, name in [key]
    ]


def _one_way(whole: str, part: str) -> bool:
    return part == whole or part.startswith(f"{whole}.")


def near(name: str, names: Sequence[str]) -> str:
    """Return `; did you mean ...?` where one of `names` is close enough, else nothing."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _words(
    problem: Mapping[str, object], path: Path, keys_at: Callable[[Path], Sequence[str]]
) -> str:
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "unknown setting" + near(path[-1], keys_at(path[:-1]))
    if problem["type"] == "literal_error":
        allowed = re.findall("'([^']*)'", str(problem["msg"]))
        return str(problem["msg"]) + near(str(problem["input"]), allowed)
    said = str(problem["msg"]).removeprefix("Value error, ")
    return WORDS.get(str(problem["type"]), said)


def _named(location: Sequence[str | int], keys_at: Callable[[Path], Sequence[str]]) -> Path:
    """Keep the part of pydantic's location that names keys; the rest names members of unions."""
    path: Path = ()
    for part in location:
        known = keys_at(path)
        if path and not known:
            break
        path = (*path, str(part))
    return path


def _nearest(lines: Mapping[Path, int], path: Path) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _lines(text: str) -> dict[Path, int]:
    """Find the line of every key; `tomllib` keeps no positions."""
    found: dict[Path, int] = {}
    table: Path = ()
    for number, line in _outside_strings(text):
        if header := _HEADER.match(line):
            table = _split(header[2])
            found.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            found.setdefault(table + _split(entry[1]), number)
    return found


def _outside_strings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that do not start inside a multi-line string."""
    open_mark = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not open_mark:
            yield number, line
        for mark in re.findall(r'"""|\'\'\'', line):
            if not open_mark:
                open_mark = mark
            elif mark == open_mark:
                open_mark = ""


def _split(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))
