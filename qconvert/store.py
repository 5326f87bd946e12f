"""Finished work, found again by what made it; it appears whole or not at all.

A piece of work is a folder named after the hash of its recipe. It is made in a draft folder beside
its final place and renamed when complete, so no lock is needed: of two processes that do the same
work, one renames first and the other takes what it finds. A killed process leaves a hidden draft,
which is swept away when nothing was written to it for a day.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

RECIPE = "recipe.json"
DRAFT = ".draft-"
ABANDONED_SECONDS = 24 * 3600
TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by qconvert; may be deleted at any time.\n"
)

Recipe = Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """One finished piece of work."""

    step: str
    path: Path
    recipe: dict[str, str]
    size_bytes: int
    age_seconds: float


@dataclass(frozen=True)
class Store:
    """Finished work under `root`, found again by the recipe that made it."""

    root: Path

    def find(self, step: str, recipe: Recipe) -> Path | None:
        """Return the folder of this work if it is finished, else None."""
        home = self._home(step, recipe)
        return home if home.is_dir() else None

    def get(self, step: str, recipe: Recipe, make: Callable[[Path], None]) -> Path:
        """Return the folder of this work; `make` fills it if it was never finished."""
        home = self._home(step, recipe)
        if home.is_dir():
            return home
        home.parent.mkdir(parents=True, exist_ok=True)
        self._tag()
        sweep(home.parent)
        with _draft(home.parent) as draft:
            make(draft)
            (draft / RECIPE).write_text(_text(recipe), encoding="utf-8")
            _settle(draft, home)
        return home

    def entries(self) -> Iterator[Entry]:
        """Yield every finished piece of work, step by step."""
        for recipe in sorted(self.root.glob(f"*/*/{RECIPE}")):
            home = recipe.parent
            if not home.name.startswith(DRAFT):
                yield Entry(home.parent.name, home, _read(recipe), size(home), _age(home))

    def clear(self, step: str | None = None) -> list[Entry]:
        """Delete finished work (of one step, or all) and return what was deleted."""
        gone = [entry for entry in self.entries() if step in (None, entry.step)]
        for entry in gone:
            # Renamed first, so that no other process can find a folder that is half deleted.
            doomed = Path(tempfile.mkdtemp(dir=entry.path.parent, prefix=DRAFT))
            entry.path.rename(doomed / "work")
            shutil.rmtree(doomed, ignore_errors=True)
        for folder in self.root.glob("*/"):
            sweep(folder)
        return gone

    def _home(self, step: str, recipe: Recipe) -> Path:
        return self.root / step / hashlib.sha256(_text(recipe).encode()).hexdigest()[:16]

    def _tag(self) -> None:
        tag = self.root / TAG
        if not tag.exists():
            tag.write_text(TAG_TEXT, encoding="utf-8")


def default() -> Store:
    """Return the store of this user: `QCONVERT_CACHE_DIR`, or the platform's cache folder."""
    chosen = os.environ.get("QCONVERT_CACHE_DIR")
    return Store(Path(chosen) if chosen else platformdirs.user_cache_path("qconvert"))


def digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def sweep(folder: Path) -> None:
    """Delete the drafts that were abandoned: nothing was written to them for a day."""
    for draft in folder.glob(f"{DRAFT}*"):
        if (
            min((_age(path) for path in [draft, *draft.rglob("*")]), default=0.0)
            > ABANDONED_SECONDS
        ):
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    draft = Path(tempfile.mkdtemp(dir=folder, prefix=DRAFT))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _settle(draft: Path, home: Path) -> None:
    try:
        draft.rename(home)
    except OSError as error:
        # Not empty: another process finished the same work first, and its result is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _text(recipe: Recipe) -> str:
    return json.dumps(dict(recipe), sort_keys=True, indent=1) + "\n"


def _read(recipe: Path) -> dict[str, str]:
    try:
        found = json.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _age(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:  # another process has just finished with it
        return 0.0
