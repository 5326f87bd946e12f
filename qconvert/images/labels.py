"""The class of each picture, from a CSV file or from the folder it lies in."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qconvert.core.errors import UsageError, did_you_mean
from qconvert.images.batches import Images
from qconvert.images.listing import (
    CLASSES_FILE,
    Classes,
    CsvRow,
    ImageListing,
    abbreviate,
    read_classes,
    read_table,
    require_files,
)

LABELS_FILE = "labels.csv"
MAX_DIGITS = 18


def attach_labels(pictures: ImageListing, labels: Path | None = None) -> ImageListing:
    """Return the pictures with labels where any can be found.

    Looked at in turn: the file given; the CSV list that named the pictures; `labels.csv` in the
    folder or next to it; the folders the pictures lie in. The first that says anything counts.
    """
    if labels is not None:
        found = _from_csv(pictures, labels)
        if found is None:
            raise UsageError(
                f"no row of `{labels}` names a picture of `{pictures.path}`",
                hint=f"its paths are relative to `{labels.parent}`",
            )
        return found
    if pictures.path.suffix.lower() == ".csv":
        return _from_csv(pictures, pictures.path) or pictures
    if not pictures.path.is_dir():
        return pictures
    for place in _label_folders(pictures.path):
        if (place / LABELS_FILE).is_file() and (found := _from_csv(pictures, place / LABELS_FILE)):
            return found
    return _from_folders(pictures)


def require_labels(images: Images) -> tuple[int, ...]:
    """Return the label of every image, or say which have none."""
    pairs = list(zip(images.names, images.labels, strict=True))
    known = tuple(label for _, label in pairs if label is not None)
    if len(known) < len(pairs):
        raise UsageError(
            f"{len(pairs) - len(known)} of {len(pairs)} images have no label",
            details=abbreviate([f"`{name}`" for name, label in pairs if label is None]),
            hint=f"give `--labels FILE` with the columns `file,label`, put a `{LABELS_FILE}` into the "
            "folder or next to it, or sort the images into one folder a class",
        )
    return known


def check_classes(images: Images, count: int) -> None:
    """Refuse labels that cannot be those of a network with `count` classes."""
    highest = max((label for label in images.labels if label is not None), default=0)
    if highest >= count:
        raise UsageError(
            f"label {highest} is no class of the model, which has {count}, counted from 0",
            hint="labels are places in the model's own order of classes",
        )
    folders = len(images.classes.names)
    if images.classes.from_folders and folders != count:
        # In sorted order a class that is missing would move up all those after it.
        raise UsageError(
            f"{folders} class folders do not say which of the model's {count} classes they are",
            hint=f"put a `{CLASSES_FILE}` next to them: the model's classes in order, one a line",
        )


def _from_csv(pictures: ImageListing, file: Path) -> ImageListing | None:
    """Return the pictures labelled by the rows that name them, None where no row does."""
    rows = read_table(file, ("file",) if file == pictures.path else ("file", "label"))
    rows = [row for row in rows if row.get("label")]
    by_place: dict[Path, CsvRow] = {}
    for row, place in zip(
        rows, _resolve_files(file.parent, (row["file"] for row in rows)), strict=True
    ):
        if by_place.setdefault(place, row)["label"] != row["label"]:
            raise UsageError(
                f"`{file}`, line {row['line']}: `{row['file']}` has two labels",
                hint="leave one of its lines",
            )
    places = _resolve_files(pictures.root, (item.name for item in pictures.items))
    if not any(place in by_place for place in places):
        return None
    _require_inside(pictures, file, set(by_place) - set(places))
    classes = read_classes(file.parent)
    labels = [
        _number(file, by_place[place], classes) if place in by_place else None for place in places
    ]
    return _with_labels(pictures, labels, classes)


def _require_inside(pictures: ImageListing, file: Path, others: Iterable[Path]) -> None:
    """Refuse rows for missing files of this folder; what lies elsewhere is not asked for."""
    if pictures.path.is_dir():
        inside = pictures.path.resolve()
        require_files(file, sorted(place for place in others if place.is_relative_to(inside)))


def _resolve_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return where files lie, in one spelling; a file that is a link stays the link."""
    real: dict[Path, Path] = {}
    places = []
    for name in names:
        file = folder / name
        if file.parent not in real:
            real[file.parent] = file.parent.resolve()
        places.append(real[file.parent] / file.name)
    return places


def _number(file: Path, row: CsvRow, classes: Classes) -> int:
    label = row["label"]
    if label in classes.numbers:
        return classes.numbers[label]
    # Python does not read numbers of thousands of digits, and no class has one of more than these.
    if label.isdecimal() and len(label) <= MAX_DIGITS:
        return int(label)
    twice = label in classes.names
    raise UsageError(
        f"`{file}`, line {row['line']}: `{label}` "
        + (
            f"stands twice in `{CLASSES_FILE}`"
            if twice
            else f"is no number and not in a `{CLASSES_FILE}`{_suggestion(label, classes)}"
        ),
        hint="write the number of the class instead"
        if twice
        else f"write the model's classes into `{file.parent / CLASSES_FILE}`, in order, one a line",
    )


def _suggestion(label: str, classes: Classes) -> str:
    """Return the name that differs in its case only, else one that is near."""
    alike = [name for name in classes.numbers if name.casefold() == label.casefold()]
    return did_you_mean(alike[0] if alike else label, alike or list(classes.numbers))


def _from_folders(pictures: ImageListing) -> ImageListing:
    """Label by the uppermost folder, if every picture lies in one and there are several."""
    tops = [item.name.partition("/")[0] for item in pictures.items]
    if any("/" not in item.name for item in pictures.items) or len(set(tops)) < 2:
        return pictures
    written = (read_classes(place) for place in _label_folders(pictures.path))
    classes = next((found for found in written if found.names), None) or _class_folders(
        pictures.path
    )
    if unknown := sorted(set(tops) - set(classes.numbers)):
        raise UsageError(
            f"folders of `{pictures.path}` are not in the `{CLASSES_FILE}` beside them",
            details=abbreviate([f"`{name}`" for name in unknown]),
            hint=f"`{CLASSES_FILE}` holds the folders' names in the order of the model's classes",
        )
    return _with_labels(pictures, [classes.numbers[top] for top in tops], classes)


def _class_folders(folder: Path) -> Classes:
    """Return all class folders; an empty one counts, else those behind it would move up."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]
    return Classes(tuple(sorted(names)), from_folders=True)


def _label_folders(folder: Path) -> tuple[Path, Path]:
    named = folder.name not in ("", "..")
    return folder, (folder if named else folder.resolve()).parent


def _with_labels(
    pictures: ImageListing, labels: Sequence[int | None], classes: Classes
) -> ImageListing:
    pairs = zip(pictures.items, labels, strict=True)
    items = tuple(replace(item, label=label) for item, label in pairs)
    return replace(pictures, items=items, classes=classes)
