"""The images of a network: those that a path names, the class of each, and their batches."""

import csv
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from qconvert.core.errors import QConvertError, UsageError, did_you_mean, first_line
from qconvert.core.tensors import Tensors
from qconvert.images.frames import Frame
from qconvert.images.truth import TrueBoxes, Truth, truth_digest

CLASSES_FILE, LABELS_FILE = "classes.txt", "labels.csv"
# Folders that are parts of a data set, and no classes.
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CSV_FORMAT = "the first line is `file,label`, and every other line names a file and its class"
_IMAGE_SOURCES = (
    "images are a folder, a list file with one path per line, a CSV with a `file` column, "
    "an .npz or .npy"
)

# Python does not read numbers of thousands of digits, and no class number needs more than these.
MAX_DIGITS = 18

CsvRow = dict[str, str]


@dataclass(frozen=True)
class Classes:
    """Class names in order; `from_folders` if the order is only that of the folder names."""

    names: tuple[str, ...] = ()
    from_folders: bool = False

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each name; a name of two classes has none."""
        times = Counter(self.names)
        return {name: number for number, name in enumerate(self.names) if name and times[name] == 1}


NO_CLASSES = Classes()
# The label of each image, and what the labels stand for.
Labels = tuple[Sequence[int | None], Classes]


@dataclass(frozen=True)
class ImageEntry:
    """One image: its name relative to the root, its hash if known, class, and place in order.

    `truth` is what the picture shows, if that is more than one class for all of it.
    """

    name: str
    sha256: str = ""
    label: int | None = None
    position: int = 0
    truth: Truth | None = field(default=None, compare=False, repr=False)


def digest_of(entries: Iterable[ImageEntry]) -> str:
    """Return one hash over the names and contents of images."""
    lines = "\n".join(f"{entry.sha256} {entry.name!r}" for entry in entries)
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256sum_text(entries: Iterable[ImageEntry]) -> str:
    """Return lines that `sha256sum --check` reads in the images' folder."""
    lines = []
    for entry in entries:
        name = entry.name.replace("\\", "\\\\").replace("\n", "\\n")
        mark = "" if name == entry.name else "\\"  # tells sha256sum that the name is escaped
        lines.append(f"{mark}{entry.sha256}  {name}\n")
    return "".join(lines)


@dataclass(frozen=True)
class Batch:
    """Inputs, and the image of each row; only the last batch may be smaller than asked for.

    `frames` say where the picture of each row lies in it; there are none where inputs are not
    pictures.
    """

    feeds: Tensors
    items: tuple[ImageEntry, ...]
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, eq=False)
class Images(ABC):
    """Chosen inputs of one network, files or array rows, that can be read any number of times.

    `source` is the path that named them, `preprocessing` says how they become inputs. `truth_kind`
    is that of the truth of the entries, where they have any, and `notes` say where it is from.
    """

    root: Path
    entries: tuple[ImageEntry, ...]
    classes: Classes
    source: Path = field(default=Path(), kw_only=True)
    preprocessing: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    truth_kind: Literal["boxes", "masks"] | None = field(default=None, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each, relative to the root."""
        return tuple(entry.name for entry in self.entries)

    @property
    def labels(self) -> tuple[int | None, ...]:
        """The class of each, None where it is unknown."""
        return tuple(entry.label for entry in self.entries)

    def select(self, indices: Sequence[int]) -> Self:
        """Return the images at these indices, numbered anew."""
        chosen = enumerate(self.entries[index] for index in indices)
        entries = tuple(replace(entry, position=position) for position, entry in chosen)
        return replace(self, entries=entries)

    def between(self, start: int, stop: int) -> Self:
        """Return a part, for a shard or a held-out set; its items keep their positions."""
        return replace(self, entries=self.entries[start:stop])

    def check_classes(self, count: int) -> None:
        """Refuse labels that do not fit a network with `count` classes; masks are checked when read."""
        labels = [label for label in self.labels if label is not None]
        for entry in self.entries:
            if isinstance(entry.truth, TrueBoxes):
                labels += entry.truth.classes.tolist()
        names, highest = self.classes.names, max(labels, default=0)
        if highest >= count:
            name = f" (`{names[highest]}`)" if highest < len(names) else ""
            raise UsageError(
                f"label {highest}{name} is not a class of the model, which has {count}, counted "
                "from 0",
                hint="labels are indices in the model's own order of classes: put a "
                f"`{CLASSES_FILE}` with that order next to them",
            )
        if self.classes.from_folders and len(names) != count:
            # In sorted order a missing class would shift all classes after it.
            kind = "names of classes" if self.truth_kind else "class folders"
            raise UsageError(
                f"{len(names)} {kind} do not say which of the model's {count} classes they are",
                hint=f"put a `{CLASSES_FILE}` next to them: the model's classes in order, one per "
                "line",
            )

    def manifest(self) -> tuple[ImageEntry, ...]:
        """Return all images with their hashes, without decoding: the key of cached work."""
        return tuple(map(ImageEntry, self.names, self._hashes()))

    def digest(self) -> str:
        """Return one hash of the images, their labels or truth, and the preprocessing."""
        parts = [digest_of(self.manifest()), self.labels, dict(self.preprocessing)]
        if any(entry.truth is not None for entry in self.entries):
            parts.append([truth_digest(entry.truth) for entry in self.entries])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def batches(self, size: int) -> Generator[Batch]:
        """Yield all images in order; closing the generator early stops all work at once."""

    @abstractmethod
    def _hashes(self) -> Iterable[str]: ...


def list_images(path: Path) -> list[str]:
    """Return the names of the images of a folder, list, CSV or single file, in a fixed order."""
    if path.is_dir():
        names = sorted(_walk(path))
        if not names:
            raise QConvertError(
                f"`{path}` contains no images",
                hint=f"supported at any depth: {', '.join(IMAGE_SUFFIXES)}",
            )
        # Reports and image lists cannot hold these names.
        invalid = [name for name in names if name.encode(errors="replace").decode() != name]
        if invalid:
            raise QConvertError(
                f"`{path}` has {len(invalid)} images whose names are not UTF-8",
                details=abbreviate([f"`{name}`" for name in invalid]),
                hint="rename them, or give a list of the others",
            )
    elif not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=_IMAGE_SOURCES)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        names = [path.name]
    else:
        names = _read_list(path)
        if not names:
            raise QConvertError(f"`{path}` names no images", hint="write one path per line")
        require_files(path, (path.parent / name for name in names))
    return names


def require_files(source: Path, files: Iterable[Path]) -> None:
    """Refuse a list or label file that names missing files."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "a file that does" if len(missing) == 1 else f"{len(missing)} files that do"
        raise UsageError(
            f"`{source}` names {count} not exist",
            details=abbreviate([f"`{file}`" for file in missing]),
            hint=f"its paths are relative to `{source.parent}`",
        )


def abbreviate(lines: Sequence[str], limit: int = 5) -> list[str]:
    """Return the first few lines, and how many more there are."""
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return [*lines[:limit], *more]


def _read_table(path: Path, required: Sequence[str]) -> list[CsvRow]:
    """Return the rows of a CSV file; the required columns and a `file` in each row must exist."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in required if name not in header]:
                raise UsageError(
                    f"`{path}` has no column `{missing[0]}`; its columns: "
                    f"{', '.join(header) or 'none'}",
                    hint="the first line must be `file,label`",
                )
            for cells in filter(None, reader):
                place = f"`{path}`, line {reader.line_num}"
                if len(cells) != len(header):
                    raise UsageError(
                        f"{place}: {len(cells)} cells under {len(header)} columns", hint=_CSV_FORMAT
                    )
                row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
                if not row["file"] or "\0" in row["file"]:
                    raise UsageError(f"{place}: no file is named", hint=_CSV_FORMAT)
                rows.append(row | {"line": str(reader.line_num)})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"`{path}` cannot be read as CSV: {first_line(error)}", hint=_CSV_FORMAT
        ) from None
    return rows


def read_classes_file(file: Path) -> Classes:
    """Return the class names in a file, one per line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{file}` cannot be read: {first_line(error)}",
            hint="write one class per line, in UTF-8",
        ) from None
    # An empty line inside is a class without a name: it keeps its number.
    return Classes(tuple(line.strip() for line in text.rstrip().splitlines()))


def choose_subset(labels: Sequence[int | None], count: int | None, seed: int) -> tuple[int, ...]:
    """Return the indices of at most `count` images, ascending and the same on every machine.

    Where every image has a label, classes get equal shares as far as they have images. Otherwise
    the images are cut into `count` equal parts, and each part gives one.
    """
    total = len(labels)
    if count is None or count >= total:
        return tuple(range(total))
    if None in labels:
        edges = [part * total // count for part in range(count + 1)]
        return tuple(start + _hash(seed, start) % (stop - start) for start, stop in pairwise(edges))
    # Each class gives its first image, then each its second, and so on.
    taken: Counter[int | None] = Counter()
    turns = []
    for index in sorted(range(total), key=lambda index: _hash(seed, index)):
        label = labels[index]
        turns.append((taken[label], _hash(seed, label), index))
        taken[label] += 1
    return tuple(sorted(index for *_, index in sorted(turns)[:count]))


def _hash(seed: int, value: int | None) -> int:
    """Return a pseudorandom number that does not depend on the version of Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{value}".encode()).digest()[:8])


def _walk(root: Path) -> Iterator[str]:
    """Yield image names at any depth; links are followed, except to a folder around them."""
    waiting = [(root, "", frozenset[tuple[int, int]]())]
    while waiting:
        folder, prefix, ancestors = waiting.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link to itself; reading it as an image gives the error
                    is_folder = False
                if is_folder:
                    inner = f"{prefix}{entry.name}/"
                    waiting.append((folder / entry.name, inner, ancestors | {identity}))
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    yield prefix + entry.name


def _read_list(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        return [row["file"] for row in _read_table(path, ("file",))]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"`{path}` is not a list of images", hint=_IMAGE_SOURCES) from None
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be read: {first_line(error)}",
            hint="write one path per line, in UTF-8",
        ) from None
    return [line.strip() for line in lines if line.strip()]


def find_labels(path: Path, names: Sequence[str], file: Path | None = None) -> Labels:
    """Return the labels of the images of `path` from the first place that has any.

    The places, in order: the file given; the CSV list that named the images; `labels.csv` in the
    folder or next to it; the folders of the images.
    """
    labelled = None
    if file is not None:
        labelled = _labels_from_csv(path, names, file)
        if labelled is None:
            raise UsageError(
                f"no row of `{file}` names an image of `{path}`",
                hint=f"its paths are relative to `{file.parent}`",
            )
    elif path.suffix.lower() == ".csv":
        labelled = _labels_from_csv(path, names, path)
    elif path.is_dir():
        folders = (path, (path.resolve() if path.name in ("", "..") else path).parent)
        files = (folder / LABELS_FILE for folder in folders)
        tables = (_labels_from_csv(path, names, file) for file in files if file.is_file())
        labelled = next(filter(None, tables), None) or _labels_from_folders(path, names, folders)
    return labelled or ([None] * len(names), NO_CLASSES)


def _labels_from_csv(path: Path, names: Sequence[str], file: Path) -> Labels | None:
    """Return the labels of the rows that name the images, None where no row does."""
    rows = _read_table(file, ("file",) if file == path else ("file", "label"))
    rows = [row for row in rows if row.get("label")]
    row_of: dict[Path, CsvRow] = {}
    for row, image in zip(rows, _resolve(file.parent, [row["file"] for row in rows]), strict=True):
        if row_of.setdefault(image, row)["label"] != row["label"]:
            raise UsageError(
                f"`{file}`, line {row['line']}: `{row['file']}` has two labels",
                hint="remove one of its lines",
            )
    images = _resolve(path if path.is_dir() else path.parent, names)
    if row_of.keys().isdisjoint(images):
        return None
    if path.is_dir():
        # Rows about files elsewhere are ignored; a missing file in this folder is a mistake.
        others = sorted(row_of.keys() - set(images))
        require_files(file, (image for image in others if image.is_relative_to(path.resolve())))
    classes = _classes_of_folder(file.parent)
    labels = [
        _class_number(file, row_of[image], classes) if image in row_of else None for image in images
    ]
    return labels, classes


def _resolve(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files' paths in one spelling; a file that is a link stays the link."""
    resolve = cache(Path.resolve)
    files = (folder / name for name in names)
    return [resolve(file.parent) / file.name for file in files]


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


def _labels_from_folders(
    path: Path, names: Sequence[str], class_lists: Iterable[Path]
) -> Labels | None:
    """Label by the uppermost folder, if every image lies in one and there are several.

    Parts of a data set, such as `train` and `val`, are no classes.
    """
    folders = [name.partition("/")[0] for name in names]
    if not all("/" in name for name in names) or len(set(folders)) < 2 or set(folders) <= SPLITS:
        return None
    if {"images", "masks"} <= set(folders):
        raise UsageError(
            f"`{path}` holds pictures and their masks",
            hint=f"name the folder of the pictures: `{path / 'images'}`",
        )
    written = (_classes_of_folder(folder) for folder in class_lists)
    classes = next((classes for classes in written if classes.names), None)
    if classes is None:
        # Empty folders count: without them the later classes would shift.
        entries = (entry for entry in path.iterdir() if entry.name[0] != ".")
        class_names = sorted(entry.name for entry in entries if entry.is_dir())
        classes = Classes(tuple(class_names), from_folders=True)
    if unknown := sorted(set(folders) - set(classes.numbers)):
        raise UsageError(
            f"folders of `{path}` are not in the `{CLASSES_FILE}` beside them",
            details=abbreviate([f"`{name}`" for name in unknown]),
            hint=f"`{CLASSES_FILE}` holds the folders' names in the order of the model's classes",
        )
    return [classes.numbers[folder] for folder in folders], classes


def _classes_of_folder(folder: Path) -> Classes:
    file = folder / CLASSES_FILE
    return read_classes_file(file) if file.exists() else NO_CLASSES
