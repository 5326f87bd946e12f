"""Trials written down one by one, so that a search that was killed goes on where it was."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Trials:
    """The trials of one subject, a line each in a file; the first line says whose they are."""

    path: Path
    known: dict[str, Record] = field(default_factory=dict)

    def of(self, key: str, make: Callable[[], Record]) -> Record:
        """Return a trial, from the file if it was made before."""
        if key not in self.known:
            self.put(key, make())
        return self.known[key]

    def put(self, key: str, made: Record) -> None:
        """Write a trial down, which is a line at once."""
        # What is read again later is what is used now, to the last digit.
        self.known[key] = json.loads(json.dumps(made))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"trial": key, **made}) + "\n")


def open_trials(path: Path, subject: str) -> Trials:
    """Return the trials that a file holds of a subject; those of another one are dropped.

    A line that was not finished, as by a kill or a full disk, ends what is taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _read(path)
    if not lines or lines[0].get("subject") != subject:
        lines = [{"subject": subject}]
    draft = path.with_name(f".{path.name}.new")
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    draft.replace(path)
    known = {str(line.pop("trial")): line for line in lines[1:]}
    return Trials(path, known)


def _read(path: Path) -> list[Record]:
    found: list[Record] = []
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            break
        if not isinstance(told, dict) or ("trial" in told) == (not found):
            break
        found.append(told)
    return found
