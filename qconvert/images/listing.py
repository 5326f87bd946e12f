"""The pictures that a path stands for: those in a folder, a list or a CSV file, or itself."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert.errors import QConvertError, UsageError, reason
from qconvert.images.classes import NO_CLASSES, Classes
from qconvert.images.table import read_table

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_FORMS = "a folder, a list file with one path a line, a CSV with a `file` column, an .npz or .npy"


@dataclass(frozen=True)
class Picture:
    """A file, its name relative to where all of them are, its label and the hash it must have."""

    name: str
    file: Path
    label: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Pictures:
    """Files in a fixed order, and what their labels stand for; `path` is what the user gave."""

    path: Path
    items: tuple[Picture, ...]
    classes: Classes = NO_CLASSES

    @property
    def root(self) -> Path:
        """The folder that the names are relative to."""
        return self.path if self.path.is_dir() else self.path.parent


def find(path: Path) -> Pictures:
    """Return the pictures without labels; nothing is opened but a list."""
    if path.is_dir():
        names = sorted(_walk(path))
        if not names:
            raise QConvertError(
                f"`{path}` holds no pictures",
                hint="looked for " + ", ".join(SUFFIXES) + " at any depth",
            )
        _require_text(path, names)
        return _pictures(path, path, names)
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=f"images are {_FORMS}")
    if path.suffix.lower() in SUFFIXES:
        return _pictures(path, path.parent, [path.name])
    names = _listed(path)
    if not names:
        raise QConvertError(f"`{path}` names no pictures", hint="a list has a path a line")
    pictures = _pictures(path, path.parent, names)
    require_files(path, (picture.file for picture in pictures.items))
    return pictures


def require_files(source: Path, files: Iterable[Path]) -> None:
    """Refuse a list or label file that names what is not there."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        count = "a file that does" if len(missing) == 1 else f"{len(missing)} files that do"
        raise UsageError(
            f"`{source}` names {count} not exist",
            details=some([f"`{file}`" for file in missing]),
            hint=f"its paths are relative to `{source.parent}`",
        )


def some(names: Sequence[str], limit: int = 5) -> list[str]:
    """Return the first few names, and how many more there are."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return [*names[:limit], *more]


def _pictures(path: Path, root: Path, names: Sequence[str]) -> Pictures:
    return Pictures(path, tuple(Picture(name, root / name) for name in names))


def _require_text(folder: Path, names: Sequence[str]) -> None:
    """Refuse names that no report and no list of images could hold."""
    wrong = [name for name in names if name.encode(errors="replace").decode() != name]
    if wrong:
        raise QConvertError(
            f"`{folder}` has {len(wrong)} pictures whose names are not UTF-8",
            details=some([f"`{name}`" for name in wrong]),
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
                elif entry.name.lower().endswith(SUFFIXES):
                    yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; who reads it as a picture is told
        return False


def _listed(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        return [row["file"] for row in read_table(path, ("file",))]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"`{path}` is no list of pictures", hint=f"images are {_FORMS}") from None
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be read: {reason(error)}", hint="a list has a path a line, in UTF-8"
        ) from None
    return [line.strip() for line in lines if line.strip()]
