"""The pictures that a path stands for: those in a folder, a list or a CSV file, or itself."""

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

CsvRow = dict[str, str]

LABELS_FORMAT = "its first line is `file,label`, and every other names a file and its class"


def read_table(path: Path, needed: Sequence[str]) -> list[CsvRow]:
    """Return the rows by column; every needed column must be there and, in each row, `file`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _require_columns(path, header, needed)
            rows = [_csv_row(path, header, cells, reader.line_num) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"`{path}` cannot be read as CSV: {first_line(error)}", hint=LABELS_FORMAT
        ) from None
    return rows


def _require_columns(path: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in header:
            raise UsageError(
                f"`{path}` has no column `{name}`; its columns: {', '.join(header) or 'none'}",
                hint="its first line must be `file,label`",
            )


def _csv_row(path: Path, header: Sequence[str], cells: Sequence[str], line: int) -> CsvRow:
    if len(cells) != len(header):
        raise UsageError(
            f"`{path}`, line {line}: {len(cells)} cells under {len(header)} columns",
            hint=LABELS_FORMAT,
        )
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["file"] or "\0" in row["file"]:
        raise UsageError(f"`{path}`, line {line}: no file is named", hint=LABELS_FORMAT)
    return row | {"line": str(line)}


CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Classes:
    """Names in order; `from_folders` if nobody wrote the order down and it is the alphabet's."""

    names: tuple[str, ...] = ()
    from_folders: bool = False

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each name; a name that stands for two classes has none."""
        times = Counter(self.names)
        return {name: at for at, name in enumerate(self.names) if name and times[name] == 1}


NO_CLASSES = Classes()


def read_classes(folder: Path) -> Classes:
    """Return the lines of the folder's `classes.txt`, nothing where there is none."""
    file = folder / CLASSES_FILE
    return read_classes_file(file) if file.exists() else NO_CLASSES


def read_classes_file(file: Path) -> Classes:
    """Return the names in a file, one a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{file}` cannot be read: {first_line(error)}", hint="a line for each class, in UTF-8"
        ) from None
    # An empty line inside is a class without a name: it keeps its number.
    return Classes(tuple(line.strip() for line in text.rstrip().splitlines()))


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_IMAGE_SOURCES = (
    "a folder, a list file with one path a line, a CSV with a `file` column, an .npz or .npy"
)


@dataclass(frozen=True)
class ImageFile:
    """A file, its name relative to where all of them are, its label and the hash it must have."""

    name: str
    file: Path
    label: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ImageListing:
    """Files in a fixed order, and what their labels stand for; `path` is what the user gave."""

    path: Path
    items: tuple[ImageFile, ...]
    classes: Classes = NO_CLASSES

    @property
    def root(self) -> Path:
        """The folder that the names are relative to."""
        return self.path if self.path.is_dir() else self.path.parent


def list_images(path: Path) -> ImageListing:
    """Return the pictures without labels; nothing is opened but a list."""
    if path.is_dir():
        names = sorted(_walk(path))
        if not names:
            raise QConvertError(
                f"`{path}` holds no pictures",
                hint="looked for " + ", ".join(IMAGE_SUFFIXES) + " at any depth",
            )
        _require_utf8_names(path, names)
        return _image_listing(path, path, names)
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=f"images are {_IMAGE_SOURCES}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _image_listing(path, path.parent, [path.name])
    names = _read_list(path)
    if not names:
        raise QConvertError(f"`{path}` names no pictures", hint="a list has a path a line")
    pictures = _image_listing(path, path.parent, names)
    require_files(path, (picture.file for picture in pictures.items))
    return pictures


def require_files(source: Path, files: Iterable[Path]) -> None:
    """Refuse a list or label file that names what is not there."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "a file that does" if len(missing) == 1 else f"{len(missing)} files that do"
        raise UsageError(
            f"`{source}` names {count} not exist",
            details=abbreviate([f"`{file}`" for file in missing]),
            hint=f"its paths are relative to `{source.parent}`",
        )


def abbreviate(names: Sequence[str], limit: int = 5) -> list[str]:
    """Return the first few names, and how many more there are."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return [*names[:limit], *more]


def _image_listing(path: Path, root: Path, names: Sequence[str]) -> ImageListing:
    return ImageListing(path, tuple(ImageFile(name, root / name) for name in names))


def _require_utf8_names(folder: Path, names: Sequence[str]) -> None:
    """Refuse names that no report and no list of images could hold."""
    wrong = [name for name in names if name.encode(errors="replace").decode() != name]
    if wrong:
        raise QConvertError(
            f"`{folder}` has {len(wrong)} pictures whose names are not UTF-8",
            details=abbreviate([f"`{name}`" for name in wrong]),
            hint="rename them, or give a list of the others",
        )


def _walk(root: Path) -> Iterator[str]:
    """Yield names of pictures at any depth; links count, but not a link to a folder around it."""
    above: frozenset[tuple[int, int]] = frozenset()
    waiting = [(root, "", above)]
    while waiting:
        folder, prefix, above = waiting.pop()
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    inner = f"{prefix}{entry.name}/"
                    waiting.append((folder / entry.name, inner, above | {here}))
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; who reads it as a picture is told
        return False


def _read_list(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        return [row["file"] for row in read_table(path, ("file",))]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(
            f"`{path}` is no list of pictures", hint=f"images are {_IMAGE_SOURCES}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be read: {first_line(error)}",
            hint="a list has a path a line, in UTF-8",
        ) from None
    return [line.strip() for line in lines if line.strip()]


def choose_subset(labels: Sequence[int | None], count: int | None, seed: int) -> tuple[int, ...]:
    """Return the places of at most `count` images, ascending.

    Where every image has a label, classes get equal shares as far as they have images. Otherwise
    the images are cut into `count` equal stretches, and each gives one.
    """
    total = len(labels)
    if count is None or count >= total:
        return tuple(range(total))
    if None in labels:
        edges = [stretch * total // count for stretch in range(count + 1)]
        return tuple(
            start + _hash_draw(seed, start) % (stop - start) for start, stop in pairwise(edges)
        )
    return tuple(sorted(_round_robin(labels, seed)[:count]))


def _round_robin(labels: Sequence[int | None], seed: int) -> list[int]:
    """Return all places so that each class gives its first, then each its second, and so on."""
    given: Counter[int | None] = Counter()
    turns: list[tuple[int, int, int]] = []
    for place in sorted(range(len(labels)), key=lambda place: _hash_draw(seed, place)):
        label = labels[place]
        turns.append((given[label], _hash_draw(seed, label), place))
        given[label] += 1
    return [place for _, _, place in sorted(turns)]


def _hash_draw(seed: int, what: int | None) -> int:
    """Return a number that depends on nothing else, on any machine and in any version of Python."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{what}".encode()).digest()[:8])
