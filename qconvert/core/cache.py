"""Finished work, found again by what made it; it appears whole or not at all.

A piece of work is a folder named after the hash of its recipe. It is made in a draft folder beside
its final place and renamed when complete: of two processes that do the same work, one renames first
and the other takes what it finds. What a killed process leaves is hidden, and goes when next there
is work of that kind. What was damaged since is made again.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from qconvert.core import atomic
from qconvert.core.errors import attach_path

RECIPE = "recipe.json"
CONTENT = "content.json"
TAG = "CACHEDIR.TAG"
TAG_CONTENT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by qconvert; may be deleted at any time.\n"
)

Recipe = Mapping[str, str]


@dataclass(frozen=True)
class CacheResult:
    """A finished piece of work, and whether it was there before."""

    path: Path
    hit: bool


@dataclass(frozen=True)
class CacheEntry:
    """One stored piece of work, as a listing shows it."""

    step: str
    path: Path
    recipe: dict[str, str]
    size_bytes: int
    age_seconds: float


@dataclass(frozen=True)
class Cache:
    """Finished work under `root`, found again by the recipe that made it.

    A `fresh` store does all work anew, and keeps it in place of what was there.
    """

    root: Path
    fresh: bool = False

    def find(self, step: str, recipe: Recipe) -> Path | None:
        """Return the folder of this work if it is finished and as it was made, else None."""
        home = self._home(step, recipe)
        return home if _is_intact(home) else None

    def get_or_make(self, step: str, recipe: Recipe, make: Callable[[Path], None]) -> CacheResult:
        """Return the folder of this work; `make` fills it if it is not there, or damaged."""
        home = self._home(step, recipe)
        if _is_intact(home) and not self.fresh:
            return CacheResult(home, hit=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        self._tag()
        with attach_path(self.root), atomic.temporary_folder(home.parent) as draft:
            make(draft)
            (draft / CONTENT).write_text(json.dumps(_file_hashes(draft), sort_keys=True))
            (draft / RECIPE).write_text(_recipe_json(recipe), encoding="utf-8")
            _publish(draft, home, fresh=self.fresh)
        return CacheResult(home, hit=False)

    @contextmanager
    def resumable(self, step: str, recipe: Recipe) -> Iterator[Path]:
        """Yield the folder in which long work on this recipe keeps what it has so far.

        It goes when the work is done. A later try finds what an earlier one left, until nothing was
        written to it for a day; of two processes at work the second has a folder of its own.
        """
        home = self._home(step, recipe)
        home.parent.mkdir(parents=True, exist_ok=True)
        self._tag()
        with atomic.resumable_folder(home.parent, home.name) as place:
            yield place

    def entries(self) -> Iterator[CacheEntry]:
        """Yield every stored piece of work, step by step."""
        for home in self._homes():
            try:
                yield CacheEntry(
                    home.parent.name,
                    home,
                    _read_recipe(home),
                    folder_bytes(home),
                    _age_seconds(home),
                )
            except FileNotFoundError:  # another process has just removed it
                continue

    def clear(self, step: str | None = None) -> list[CacheEntry]:
        """Delete stored work (of one step, or all) and return what was deleted."""
        gone = [entry for entry in self.entries() if step in (None, entry.step)]
        for entry in gone:
            atomic.remove_folder(entry.path)
        for folder in {home.parent for home in self._homes()} | {each.path.parent for each in gone}:
            atomic.remove_abandoned(folder)
        return gone

    def _homes(self) -> list[Path]:
        """Return the folders that are ours: in a store we marked, named as we name them."""
        if not (self.root / TAG).is_file():
            return []
        return sorted(
            home for home in self.root.glob("*/*") if re.fullmatch("[0-9a-f]{16}", home.name)
        )

    def _home(self, step: str, recipe: Recipe) -> Path:
        return self.root / step / hashlib.sha256(_recipe_json(recipe).encode()).hexdigest()[:16]

    def _tag(self) -> None:
        tag = self.root / TAG
        if not tag.exists():
            tag.write_text(TAG_CONTENT, encoding="utf-8")


def open_default(*, fresh: bool = False) -> Cache:
    """Return the store of this user: `QCONVERT_CACHE_DIR`, or the platform's cache folder.

    What killed processes left in it is gone then.
    """
    chosen = os.environ.get("QCONVERT_CACHE_DIR")
    root = Path(chosen) if chosen else platformdirs.user_cache_path("qconvert")
    if (root / TAG).is_file():
        for folder in root.glob("*/"):
            atomic.remove_abandoned(folder)
    return Cache(root, fresh)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _publish(draft: Path, home: Path, *, fresh: bool) -> None:
    """Put finished work in its place; what another process finished first is as good."""
    # Nothing is removed before the rename has failed: it could be what another has just finished.
    while True:
        if fresh:
            atomic.remove_folder(home)
        try:
            draft.rename(home)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if not fresh and _is_intact(home):
            return
        atomic.remove_folder(home)


def _is_intact(home: Path) -> bool:
    try:
        wanted = json.loads((home / CONTENT).read_text(encoding="utf-8"))
        return bool(wanted == _file_hashes(home))
    except (OSError, ValueError):
        return False


def _file_hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in files
        if path.name not in (RECIPE, CONTENT)
    }


def _recipe_json(recipe: Recipe) -> str:
    return json.dumps(dict(recipe), sort_keys=True, indent=1) + "\n"


def _read_recipe(home: Path) -> dict[str, str]:
    try:
        found = json.loads((home / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _age_seconds(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)
