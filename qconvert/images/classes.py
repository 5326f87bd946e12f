"""What the classes are called, in the order of their numbers."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qconvert.errors import UsageError, reason

CLASSES = "classes.txt"


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
    file = folder / CLASSES
    return classes_in(file) if file.exists() else NO_CLASSES


def classes_in(file: Path) -> Classes:
    """Return the names in a file, one a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{file}` cannot be read: {reason(error)}", hint="a line for each class, in UTF-8"
        ) from None
    # An empty line inside is a class without a name: it keeps its number.
    return Classes(tuple(line.strip() for line in text.rstrip().splitlines()))
