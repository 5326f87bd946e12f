"""Find the class of each image: in a CSV file, or from the folder it lies in."""

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
# Python does not read numbers of thousands of digits, and no class number needs more than these.
MAX_DIGITS = 18


def attach_labels(listing: ImageListing, labels: Path | None = None) -> ImageListing:
    """Return the images with the labels of the first place that has any.

    The places, in order: the file given; the CSV list that named the images; `labels.csv` in the
    folder or next to it; the folders the images lie in.
    """
    if labels is not None:
        labelled = _labels_from_csv(listing, labels)
        if labelled is None:
            raise UsageError(
                f"no row of `{labels}` names an image of `{listing.path}`",
                hint=f"its paths are relative to `{labels.parent}`",
            )
        return labelled
    if listing.path.suffix.lower() == ".csv":
        return _labels_from_csv(listing, listing.path) or listing
    if not listing.path.is_dir():
        return listing
    for folder in _label_folders(listing.path):
        file = folder / LABELS_FILE
        if file.is_file() and (labelled := _labels_from_csv(listing, file)):
            return labelled
    return _labels_from_folders(listing)


def check_classes(images: Images, count: int) -> None:
    """Refuse labels that cannot be those of a network with `count` classes."""
    highest = max((label for label in images.labels if label is not None), default=0)
    if highest >= count:
        raise UsageError(
            f"label {highest} is not a class of the model, which has {count}, counted from 0",
            hint="labels are indices in the model's own order of classes",
        )
    folders = len(images.classes.names)
    if images.classes.from_folders and folders != count:
        # In sorted order a missing class would shift all classes after it.
        raise UsageError(
            f"{folders} class folders do not say which of the model's {count} classes they are",
            hint=f"put a `{CLASSES_FILE}` next to them: the model's classes in order, one per line",
        )


def _labels_from_csv(listing: ImageListing, file: Path) -> ImageListing | None:
    """Return the images labelled by the rows that name them, None where no row does."""
    rows = read_table(file, ("file",) if file == listing.path else ("file", "label"))
    rows = [row for row in rows if row.get("label")]
    row_of: dict[Path, CsvRow] = {}
    paths = _resolve_files(file.parent, (row["file"] for row in rows))
    for row, path in zip(rows, paths, strict=True):
        if row_of.setdefault(path, row)["label"] != row["label"]:
            raise UsageError(
                f"`{file}`, line {row['line']}: `{row['file']}` has two labels",
                hint="remove one of its lines",
            )
    paths = _resolve_files(listing.root, (item.name for item in listing.items))
    if row_of.keys().isdisjoint(paths):
        return None
    if listing.path.is_dir():
        # Rows about files elsewhere are ignored; a missing file in this folder is a mistake.
        folder = listing.path.resolve()
        others = sorted(row_of.keys() - set(paths))
        require_files(file, (path for path in others if path.is_relative_to(folder)))
    classes = read_classes(file.parent)
    labels = [
        _class_number(file, row_of[path], classes) if path in row_of else None for path in paths
    ]
    return _with_labels(listing, labels, classes)


def _resolve_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files' paths in one spelling; a file that is a link stays the link."""
    resolved: dict[Path, Path] = {}
    paths = []
    for name in names:
        file = folder / name
        if file.parent not in resolved:
            resolved[file.parent] = file.parent.resolve()
        paths.append(resolved[file.parent] / file.name)
    return paths


def _class_number(file: Path, row: CsvRow, classes: Classes) -> int:
    label = row["label"]
    if label in classes.numbers:
        return classes.numbers[label]
    if label.isdecimal() and len(label) <= MAX_DIGITS:
        return int(label)
    if label in classes.names:
        problem = f"is listed twice in `{CLASSES_FILE}`"
        hint = "write the number of the class instead"
    else:
        alike = [name for name in classes.numbers if name.casefold() == label.casefold()]
        suggestion = did_you_mean(alike[0] if alike else label, alike or list(classes.numbers))
        problem = f"is neither a number nor in a `{CLASSES_FILE}`{suggestion}"
        classes_file = file.parent / CLASSES_FILE
        hint = f"write the model's classes into `{classes_file}`, in order, one per line"
    raise UsageError(f"`{file}`, line {row['line']}: `{label}` {problem}", hint=hint)


def _labels_from_folders(listing: ImageListing) -> ImageListing:
    """Label by the uppermost folder, if every image lies in one and there are several."""
    folders = [item.name.partition("/")[0] for item in listing.items]
    if any("/" not in item.name for item in listing.items) or len(set(folders)) < 2:
        return listing
    written = (read_classes(folder) for folder in _label_folders(listing.path))
    classes = next((classes for classes in written if classes.names), None)
    classes = classes or _class_folders(listing.path)
    if unknown := sorted(set(folders) - set(classes.numbers)):
        raise UsageError(
            f"folders of `{listing.path}` are not in the `{CLASSES_FILE}` beside them",
            details=abbreviate([f"`{name}`" for name in unknown]),
            hint=f"`{CLASSES_FILE}` holds the folders' names in the order of the model's classes",
        )
    return _with_labels(listing, [classes.numbers[folder] for folder in folders], classes)


def _class_folders(folder: Path) -> Classes:
    """Return all class folders, empty ones too: without them the later classes would shift."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]
    return Classes(tuple(sorted(names)), from_folders=True)


def _label_folders(folder: Path) -> tuple[Path, Path]:
    named = folder.name not in ("", "..")
    return folder, (folder if named else folder.resolve()).parent


def _with_labels(
    listing: ImageListing, labels: Sequence[int | None], classes: Classes
) -> ImageListing:
    pairs = zip(listing.items, labels, strict=True)
    items = tuple(replace(item, label=label) for item, label in pairs)
    return replace(listing, items=items, classes=classes)
