"""Boxes from Pascal VOC's XML: one file per picture, an `object` element per object.

Columns and rows count from 1 and both ends belong to the object, as in VOC: `xmin` 1 is the left
edge of the picture, `xmax` its width. `difficult` objects are not judged.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from qconvert.core.errors import UsageError, first_line
from qconvert.images.image_files import upright_size
from qconvert.images.listing import Classes, abbreviate
from qconvert.images.truth_boxes import BoxRecord, CheckedBoxes, Corners, Size, check_boxes

_FORMAT = (
    "an `object` has a `name` and a `bndbox` with the numbers `xmin`, `ymin`, `xmax` and `ymax`"
)
# Far more than a picture's objects take; entities could unfold to any length, and are refused.
_MAX_BYTES = 50_000_000
_DECLARATION = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


@dataclass(frozen=True)
class VocObject:
    """An object as the file writes it."""

    place: str
    name: str
    corners: Corners
    difficult: bool


@dataclass(frozen=True)
class VocFile:
    """The objects of a picture, and the size that the file says it has, if it does."""

    objects: tuple[VocObject, ...]
    size: Size | None


def read_voc(files: Mapping[int, Path], source: str) -> dict[int, VocFile]:
    """Read the XML file of each picture; all that cannot be read are named in one error."""
    annotations, problems = {}, []
    for index, file in files.items():
        try:
            annotations[index] = _read_file(file)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            problems.append(f"`{file.name}`: {first_line(error)}")
    if problems:
        raise UsageError(
            f"`{source}` has {len(problems)} invalid files",
            details=abbreviate(problems),
            hint=_FORMAT,
        )
    return annotations


def voc_classes(annotations: Mapping[int, VocFile], listed: Classes, source: str) -> Classes:
    """Return the classes: those listed, or else all names that occur, in sorted order."""
    names = sorted({item.name for file in annotations.values() for item in file.objects})
    if not listed.names:
        return Classes(tuple(names), from_folders=True)
    if unknown := [f"`{name}`" for name in names if name not in listed.numbers]:
        raise UsageError(
            f"`{source}` has {len(unknown)} classes that `classes.txt` does not have",
            details=abbreviate(unknown),
            hint="`classes.txt` holds the model's classes in order, by the names in the XML files",
        )
    return listed


def voc_boxes(
    source: str,
    root: Path,
    names: Sequence[str],
    annotations: Mapping[int, VocFile],
    classes: Classes,
) -> CheckedBoxes:
    """Return the truth of each picture that has a file."""
    sizes: list[Size | None] = [None] * len(names)
    problems = []
    records = []
    for index, file in annotations.items():
        size = sizes[index] = upright_size(root / names[index])
        if None not in (size, file.size) and size != file.size:
            problems.append(f"`{names[index]}` is {_text(size)}, not {_text(file.size)}")
        records += [
            BoxRecord(item.place, index, item.corners, classes.numbers[item.name], item.difficult)
            for item in file.objects
        ]
    if problems:
        raise UsageError(
            f"`{source}` has {len(problems)} pictures of another size than it says",
            details=abbreviate(problems),
            hint="boxes are in pixels of the picture as it is shown, after its EXIF orientation",
        )
    return check_boxes(source, records, sizes, set(annotations))


def _text(size: Size | None) -> str:
    return "×".join(map(str, size or ()))


def _read_file(file: Path) -> VocFile:
    with file.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES:,} bytes")
    # Another encoding could hide a declaration from the search below.
    text = data.decode("utf-8-sig").encode()
    if _DECLARATION.search(text):
        raise ValueError("a document type or entity is declared, which is not read")
    tree = ElementTree.fromstring(text, ElementTree.XMLParser(encoding="utf-8"))  # noqa: S314
    if tree.tag != "annotation":
        raise ValueError(f"the first element is `{tree.tag[:60]}`, not `annotation`")
    size = None
    if tree.find("size") is not None:
        # Some writers leave zeros.
        width, height = (round(_number(tree, f"size/{side}")) for side in ("width", "height"))
        size = (width, height) if width > 0 and height > 0 else None
    objects = []
    for number, element in enumerate(tree.findall("object"), 1):
        place = f"`{file.name}`, object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"object {number} has no `name`")
        left, top, right, bottom = (
            _number(element, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (element.findtext("difficult") or "").strip() == "1"
        objects.append(VocObject(place, name, (left - 1, top - 1, right, bottom), difficult))
    return VocFile(tuple(objects), size)


def _number(element: ElementTree.Element, path: str) -> float:
    text = (element.findtext(path) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        raise ValueError(f"`{path}` is not a number: `{text[:60]}`")
    return value
