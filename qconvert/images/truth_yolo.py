"""Boxes from YOLO's text files: one file per picture, `class cx cy width height` per line.

The numbers are shares of the picture's width and height. A line with three points or more is the
outline of an object, as in labels for segmentation, which is its mask; its box is the one around
it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qconvert.core.errors import UsageError, first_line
from qconvert.images.image_files import upright_size
from qconvert.images.listing import MAX_DIGITS, Classes, abbreviate
from qconvert.images.object_masks import Polygons, outline_of
from qconvert.images.truth_boxes import BoxRecord, CheckedBoxes, Corners, Size, check_boxes

_LINE_FORMAT = (
    "a line is `class cx cy width height`; the class is a number from 0, the others are shares of "
    "the picture's width and height"
)
_NAMES_FORMAT = "write `names: [cat, dog]`, or one name per line below `names:`"
_KEY = re.compile(r"names\s*:\s*(?P<rest>.*)")
_ITEM = re.compile(r"(?:-\s+|(?P<number>\d{1,6})\s*:\s*)(?P<name>.+)")


def yolo_boxes(
    source: str, root: Path, names: Sequence[str], files: Mapping[int, Path], classes: Classes
) -> CheckedBoxes:
    """Return the truth of each picture from its file; an empty file is a picture of no object."""
    records: list[BoxRecord] = []
    problems: list[str] = []
    sizes: list[Size | None] = [None] * len(names)
    readable = set()
    for index, file in files.items():
        size = sizes[index] = upright_size(root / names[index])
        if size is None:  # shares of an unknown size say nothing, and the picture is never run
            continue
        readable.add(index)
        for number, line in enumerate(_read_lines(file), 1):
            place = f"`{file.name}`, line {number}"
            record = _record(place, index, line, size)
            if record is None:
                continue
            if isinstance(record, str):
                problems.append(f"{place}: {record}")
            elif classes.names and record.label >= len(classes.names):
                problems.append(
                    f"{place}: {record.label} is not one of the {len(classes.names)} classes"
                )
            else:
                records.append(record)
    if problems:
        raise UsageError(
            f"`{source}` has {len(problems)} invalid lines",
            details=abbreviate(problems),
            hint=_LINE_FORMAT,
        )
    return check_boxes(source, records, sizes, readable)


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{file}` cannot be read: {first_line(error)}", hint=_LINE_FORMAT
        ) from None
    return lines


def _record(place: str, index: int, line: str, size: Size) -> BoxRecord | str | None:
    """Return what a line says, None of an empty one, or what is wrong with it."""
    words = line.split()
    if not words:
        return None
    try:
        label, *values = map(float, words)
    except ValueError:
        return f"`{line.strip()[:60]}` is not a row of numbers"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"{len(words)} numbers"
    if not label.is_integer() or not 0 <= label < 10**6:
        return f"`{words[0][:MAX_DIGITS]}` is not the number of a class"
    if not all(abs(value) < 1e6 for value in values):  # NaN is not, either
        return "numbers that are no shares of a picture"
    shape = Polygons((outline_of(values) * size,)) if len(values) > 4 else None
    return BoxRecord(place, index, _corners(values, size), int(label), shape=shape)


def _corners(values: Sequence[float], size: Size) -> Corners:
    width, height = size
    if len(values) == 4:
        x, y, across, down = values
        edges = x - across / 2, y - down / 2, x + across / 2, y + down / 2
    else:
        edges = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    return edges[0] * width, edges[1] * height, edges[2] * width, edges[3] * height


def read_yaml_names(file: Path) -> Classes:
    """Return the class names under `names:` of a YOLO data file, a list or numbered from 0.

    Only this key is read: `names: [cat, dog]`, `names: {0: cat, 1: dog}`, or one per line below it.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{file}` cannot be read: {first_line(error)}", hint=_NAMES_FORMAT
        ) from None
    start = next((number for number, line in enumerate(lines) if _KEY.match(line)), None)
    if start is None:
        return Classes()
    match = _KEY.match(lines[start])
    rest = _strip_comment(match["rest"]) if match else ""
    if rest[:1] in ("[", "{"):
        items = _flow_items(file, rest, lines[start + 1 :])
    elif rest:
        raise UsageError(f"`{file}`: `names: {rest[:60]}` is not a list", hint=_NAMES_FORMAT)
    else:
        items = _block_items(lines[start + 1 :])
    names = [_name_of_item(file, number, item) for number, item in enumerate(items)]
    return Classes(tuple(names))


def _flow_items(file: Path, first: str, following: Sequence[str]) -> list[str]:
    """Return the items of `[a, b]` or `{0: a, 1: b}` as lines of a block."""
    text = " ".join([first, *(_strip_comment(line) for line in following)])
    opening, closing = text[0], "]" if text[0] == "[" else "}"
    items, item, quote = [], "", ""
    for sign in text[1:]:
        if sign == quote:
            quote = ""
        elif sign in "\"'" and not quote and not item.rpartition(":")[2].strip():
            quote = sign
        elif not quote and sign in (",", closing):
            items.append(item.strip())
            item = ""
            if sign == closing:
                items = [entry for entry in items if entry]
                return [f"- {entry}" for entry in items] if opening == "[" else items
            continue
        item += sign
    raise UsageError(f"`{file}`: `names:` has no `{closing}`", hint=_NAMES_FORMAT)


def _block_items(lines: Sequence[str]) -> list[str]:
    items = []
    for line in lines:
        text = _strip_comment(line)
        if not text:
            continue
        if not line[0].isspace() and not text.startswith("- "):
            break  # the next key
        items.append(text)
    return items


def _name_of_item(file: Path, number: int, item: str) -> str:
    match = _ITEM.fullmatch(item)
    if match is None or int(match["number"] or number) != number:
        raise UsageError(
            f"`{file}`: `{item[:60]}` is not class {number} of `names:`",
            hint=f"{_NAMES_FORMAT}; numbers run from 0 without a gap",
        )
    name = match["name"].strip()
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "\"'"
    return name[1:-1] if quoted else name


def _strip_comment(line: str) -> str:
    """Return a line without what follows ` #`, unless that is within quotes."""
    quote = ""
    for place, sign in enumerate(line):
        if sign == quote:
            quote = ""
        elif not quote and sign in "\"'" and (not place or line[place - 1] in " [{,:-"):
            quote = sign
        elif sign == "#" and not quote and (not place or line[place - 1].isspace()):
            return line[:place].strip()
    return line.strip()
