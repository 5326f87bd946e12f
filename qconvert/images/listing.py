"""List the images a path names, the classes of its folders, and the subset to use."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from qconvert.core.errors import QConvertError, UsageError, first_line

CLASSES_FILE = "classes.txt"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CSV_FORMAT = "the first line is `file,label`, and every other line names a file and its class"
_IMAGE_SOURCES = (
    "images are a folder, a list file with one path per line, a CSV with a `file` column, "
    "an .npz or .npy"
)

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


@dataclass(frozen=True)
class ImageEntry:
    """One image: its name relative to the root, the hash of its content if known, and its class."""

    name: str
    sha256: str = ""
    label: int | None = None


@dataclass(frozen=True)
class ImageListing:
    """Image files in a fixed order, and their classes; `path` is what the user named."""

    path: Path
    items: tuple[ImageEntry, ...]
    classes: Classes = NO_CLASSES

    @property
    def root(self) -> Path:
        """The folder that the names are relative to."""
        return self.path if self.path.is_dir() else self.path.parent


def list_images(path: Path) -> ImageListing:
    """Return the images of a folder, list, CSV or single file, without labels or opening them."""
    if path.is_dir():
        names = sorted(_walk(path))
        if not names:
            raise QConvertError(
                f"`{path}` contains no images",
                hint=f"supported at any depth: {', '.join(IMAGE_SUFFIXES)}",
            )
        _require_utf8_names(path, names)
    elif not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=_IMAGE_SOURCES)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        names = [path.name]
    else:
        names = _read_list(path)
        if not names:
            raise QConvertError(f"`{path}` names no images", hint="write one path per line")
        require_files(path, (path.parent / name for name in names))
    return ImageListing(path, tuple(ImageEntry(name) for name in names))


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


def read_table(path: Path, required: Sequence[str]) -> list[CsvRow]:
    """Return the rows of a CSV file; the required columns and a `file` in each row must exist."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in required:
                if name not in header:
                    raise UsageError(
                        f"`{path}` has no column `{name}`; its columns: "
                        f"{', '.join(header) or 'none'}",
                        hint="the first line must be `file,label`",
                    )
            return [_csv_row(path, header, cells, reader.line_num) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"`{path}` cannot be read as CSV: {first_line(error)}", hint=_CSV_FORMAT
        ) from None


def read_classes(folder: Path) -> Classes:
    """Return the classes named in the folder's `classes.txt`, or none without that file."""
    file = folder / CLASSES_FILE
    return read_classes_file(file) if file.exists() else NO_CLASSES


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
    return tuple(sorted(_round_robin(labels, seed)[:count]))


def _round_robin(labels: Sequence[int | None], seed: int) -> list[int]:
    """Return all indices so that each class gives its first, then each its second, and so on."""
    taken: Counter[int | None] = Counter()
    keys: dict[int, tuple[int, int, int]] = {}
    for index in sorted(range(len(labels)), key=lambda index: _hash(seed, index)):
        label = labels[index]
        keys[index] = (taken[label], _hash(seed, label), index)
        taken[label] += 1
    return sorted(keys, key=keys.__getitem__)


def _hash(seed: int, value: int | None) -> int:
    """Return a pseudorandom number that does not depend on the version of Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{value}".encode()).digest()[:8])


def _csv_row(path: Path, header: Sequence[str], cells: Sequence[str], line: int) -> CsvRow:
    if len(cells) != len(header):
        raise UsageError(
            f"`{path}`, line {line}: {len(cells)} cells under {len(header)} columns",
            hint=_CSV_FORMAT,
        )
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["file"] or "\0" in row["file"]:
        raise UsageError(f"`{path}`, line {line}: no file is named", hint=_CSV_FORMAT)
    return row | {"line": str(line)}


def _require_utf8_names(folder: Path, names: Sequence[str]) -> None:
    """Refuse names that no report and no list of images could hold."""
    invalid = [name for name in names if name.encode(errors="replace").decode() != name]
    if invalid:
        raise QConvertError(
            f"`{folder}` has {len(invalid)} images whose names are not UTF-8",
            details=abbreviate([f"`{name}`" for name in invalid]),
            hint="rename them, or give a list of the others",
        )


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
                if _is_folder(entry):
                    inner = f"{prefix}{entry.name}/"
                    waiting.append((folder / entry.name, inner, ancestors | {identity}))
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it as an image gives the error
        return False


def _read_list(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        return [row["file"] for row in read_table(path, ("file",))]
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
