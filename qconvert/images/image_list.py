"""Which images were used: names and hashes, kept in every artefact that came from them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.errors import QConvertError


@dataclass(frozen=True)
class Entry:
    """One image by name, relative to the list's root, and by content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ImageList:
    """Images in the order of their use, and the place that their names are relative to."""

    root: Path
    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def digest(self) -> str:
        """Return one hash over all names and contents; where they lie does not matter."""
        lines = "\n".join(f"{entry.sha256} {entry.name!r}" for entry in self.entries)
        return hashlib.sha256(lines.encode()).hexdigest()

    def shared(self, other: "ImageList") -> tuple[str, ...]:
        """Return the names of images whose content is in the other list too."""
        there = {entry.sha256 for entry in other.entries}
        return tuple(entry.name for entry in self.entries if entry.sha256 in there)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return {
            "root": self.root.as_posix(),
            "images": [{"name": entry.name, "sha256": entry.sha256} for entry in self.entries],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ImageList":
        """Read what `to_dict` wrote."""
        try:
            entries = [Entry(str(each["name"]), str(each["sha256"])) for each in stored["images"]]
            return cls(Path(stored["root"]), tuple(entries))
        except (KeyError, TypeError):
            raise QConvertError(
                "a stored list of images is damaged", hint="make it again"
            ) from None

    def to_text(self) -> str:
        """Return lines that `sha256sum --check` reads in the images' folder."""
        lines = []
        for entry in self.entries:
            name = entry.name.replace("\\", "\\\\").replace("\n", "\\n")
            mark = "" if name == entry.name else "\\"  # tells sha256sum that the name is escaped
            lines.append(f"{mark}{entry.sha256}  {name}\n")
        return "".join(lines)
