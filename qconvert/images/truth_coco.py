"""Boxes and masks from COCO's JSON: `images`, `annotations` and `categories`."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.core.errors import UsageError, first_line
from qconvert.images.coco_segmentation import parse_segmentation
from qconvert.images.image_files import upright_size
from qconvert.images.listing import Classes, abbreviate
from qconvert.images.truth_boxes import BoxRecord, CheckedBoxes, Corners, Size, check_boxes

_FORMAT = "COCO's JSON is an object with the lists `images`, `annotations` and `categories`"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class CocoFile:
    """The three lists of a COCO file, whose elements are objects with the ids that they need."""

    path: Path
    images: tuple[Json, ...]
    annotations: tuple[Json, ...]
    categories: tuple[Json, ...]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file; its boxes are not checked yet."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"`{path}` cannot be read as JSON: {first_line(error)}", hint=_FORMAT
        ) from None
    lists = []
    for key, required in (
        ("images", {"id": int, "file_name": str}),
        ("annotations", {"image_id": int, "category_id": int}),
        ("categories", {"id": int, "name": str}),
    ):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UsageError(f"`{path}` has no list `{key}`", hint=_FORMAT)
        problems = [
            f"`{key}[{number}]` {problem}"
            for number, row in enumerate(rows)
            if (problem := _problem_of_row(row, required))
        ]
        _refuse(path, f"invalid entries in `{key}`", problems, _FORMAT)
        lists.append(tuple(rows))
    for key, rows in (("images", lists[0]), ("categories", lists[2])):
        times = Counter(row["id"] for row in rows)
        twice = [f"`{key}` with id {number}" for number, count in times.items() if count > 1]
        _refuse(path, f"ids used more than once in `{key}`", twice, "an id names one entry")
    return CocoFile(path, *lists)


def is_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's lists; of another kind of file this is no judgement."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return True  # reading it as COCO says what is wrong with it
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def match_pictures(coco: CocoFile, root: Path, names: Sequence[str]) -> dict[int, int]:
    """Return the index of the picture of each COCO image id; images elsewhere have none.

    A `file_name` is a path in the folder of the pictures, or from the JSON file, or else the name
    of one file at any depth.
    """
    exact = {name: index for index, name in enumerate(names)}
    paths = {(root / name).resolve(): index for index, name in enumerate(names)}
    by_last_part = defaultdict(list)
    for place, name in enumerate(names):
        by_last_part[Path(name).name].append(place)
    indices: dict[int, int] = {}
    for image in coco.images:
        name = image["file_name"].replace("\\", "/")
        candidates = by_last_part.get(Path(name).name, [])
        index: int | None = exact.get(name)
        if index is None and candidates:
            index = paths.get((coco.path.parent / name).resolve())
        if index is None and len(candidates) == 1:
            index = candidates[0]
        elif index is None and candidates:
            raise UsageError(
                f"`{coco.path}` names `{name}`, and {len(candidates)} pictures have that name",
                details=abbreviate([f"`{names[candidate]}`" for candidate in candidates]),
                hint="write `file_name` as a path in the folder of the pictures",
            )
        if index is not None:
            indices[image["id"]] = index
    times = Counter(indices.values())
    twice = [f"`{names[index]}`" for index, count in times.items() if count > 1]
    _refuse(coco.path, "pictures listed more than once", twice, "list each picture once")
    return indices


def missing_pictures(coco: CocoFile, indices: Mapping[int, int]) -> list[str]:
    """Return the images of a COCO file that are not among the pictures."""
    return [f"`{image['file_name']}`" for image in coco.images if image["id"] not in indices]


def coco_classes(coco: CocoFile, listed: Classes) -> tuple[Classes, dict[int, int]]:
    """Return the classes and the number of each category id.

    Without a list of classes, the categories are numbered from 0 in order of their ids.
    """
    if not listed.names:
        ordered = sorted(coco.categories, key=lambda category: category["id"])
        names = tuple(category["name"] for category in ordered)
        return Classes(names), {category["id"]: n for n, category in enumerate(ordered)}
    used = {annotation["category_id"] for annotation in coco.annotations}
    unknown = [
        f"`{category['name']}`"
        for category in coco.categories
        if category["id"] in used and category["name"] not in listed.numbers
    ]
    _refuse(
        coco.path,
        "categories that `classes.txt` does not have",
        unknown,
        "`classes.txt` holds the model's classes in order, by the names of the categories",
    )
    return listed, {
        category["id"]: listed.numbers[category["name"]]
        for category in coco.categories
        if category["name"] in listed.numbers
    }


def coco_boxes(
    coco: CocoFile,
    root: Path,
    names: Sequence[str],
    indices: Mapping[int, int],
    numbers: Mapping[int, int],
) -> CheckedBoxes:
    """Return the truth of each picture; one that the file lists without a box shows no object."""
    images = {image["id"] for image in coco.images}
    categories = {category["id"] for category in coco.categories}
    problems = []
    for number, row in enumerate(coco.annotations):
        for key, ids in (("image_id", images), ("category_id", categories)):
            if row[key] not in ids:
                problems.append(
                    f"`annotations[{number}]` has the {key} {row[key]}, which no entry has"
                )
    _refuse(coco.path, "unknown images or categories", problems, "an id is that of an entry above")
    records = list(_records(coco, indices, numbers))
    sizes = _sizes(coco, root, names, indices)
    return check_boxes(coco.path.name, records, sizes, set(indices.values()))


def _records(
    coco: CocoFile, indices: Mapping[int, int], numbers: Mapping[int, int]
) -> Iterator[BoxRecord]:
    problems = []
    for number, row in enumerate(coco.annotations):
        index = indices.get(row["image_id"])
        if index is None:
            continue
        place = f"`annotations[{number}]`"
        corners = _corners(row.get("bbox"))
        if corners is None:
            problems.append(f"{place}: `bbox` is not [x, y, width, height]")
            continue
        area = row.get("area")
        area = float(area) if area is not None and _is_number(area) else None
        crowd = row.get("iscrowd") in (1, True)
        shape = parse_segmentation(row.get("segmentation"))
        yield BoxRecord(place, index, corners, numbers[row["category_id"]], crowd, area, shape)
    _refuse(coco.path, "invalid boxes", problems, "`bbox` is [x, y, width, height] in pixels")


def _corners(bbox: object) -> Corners | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return None
    left, top, width, height = map(float, bbox)
    # A negative width would be a box that runs backwards: checked as one without area.
    return left, top, left + width, top + height


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e9 and math.isfinite(value)


def _sizes(
    coco: CocoFile, root: Path, names: Sequence[str], indices: Mapping[int, int]
) -> list[Size | None]:
    """Return the sizes of the pictures that the file lists, which must be those that it says."""
    sizes: list[Size | None] = [None] * len(names)
    problems = []
    for image in coco.images:
        index = indices.get(image["id"])
        if index is None:
            continue
        size = sizes[index] = upright_size(root / names[index])
        written = image.get("width"), image.get("height")
        if size is not None and None not in written and written != size:
            problems.append(
                f"`{names[index]}` is {size[0]}×{size[1]}, not {written[0]}×{written[1]}"
            )
    _refuse(
        coco.path,
        "pictures of another size than it says",
        problems,
        "boxes are in pixels of the picture as it is shown, after its EXIF orientation",
    )
    return sizes


def _problem_of_row(row: object, required: Mapping[str, type]) -> str:
    if not isinstance(row, dict):
        return "is not an object"
    for key, kind in required.items():
        if not isinstance(row.get(key), kind) or isinstance(row[key], bool):
            return f"has no `{key}` that is {'a whole number' if kind is int else 'a text'}"
    if "\0" in str(row.get("file_name", "")):
        return "has a `file_name` that no file can have"
    return ""


def _refuse(path: Path, what: str, problems: Iterable[str], hint: str) -> None:
    lines = list(problems)
    if lines:
        raise UsageError(f"`{path}` has {len(lines)} {what}", details=abbreviate(lines), hint=hint)
