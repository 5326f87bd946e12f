"""Results of finished work, found again by what decided them; they are complete or do not exist.

A result is a folder named after the hash of its key. It is built in a temporary folder beside its
final path and renamed when complete: of two processes that do the same work, one renames first and
the other uses its result. Whatever a killed process leaves is hidden, and removed with the next
work of that kind. Damaged results are computed again.
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

KEY_FILE = "recipe.json"
HASHES_FILE = "content.json"
TAG_FILE = "CACHEDIR.TAG"
TAG_CONTENT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by qconvert; may be deleted at any time.\n"
)

CacheKey = Mapping[str, str]  # everything that decides a result, by name


@dataclass(frozen=True)
class CacheResult:
    """The folder of a result, and whether it was cached before."""

    path: Path
    hit: bool


@dataclass(frozen=True)
class CacheEntry:
    """A cached result, as a listing shows it; `recipe` is its key."""

    step: str
    path: Path
    recipe: dict[str, str]
    size_bytes: int
    age_seconds: float


@dataclass(frozen=True)
class Cache:
    """The results under `root`; a `fresh` cache computes all of them again and replaces them."""

    root: Path
    fresh: bool = False

    def get_or_make(self, step: str, key: CacheKey, make: Callable[[Path], None]) -> CacheResult:
        """Return the folder of a result; `make` fills a new one if it is missing or damaged."""
        folder = self._folder(step, key)
        if not self.fresh and _is_intact(folder):
            return CacheResult(folder, hit=True)
        self._prepare(folder.parent)
        with attach_path(self.root), atomic.temporary_folder(folder.parent) as draft:
            make(draft)
            (draft / HASHES_FILE).write_text(json.dumps(_file_hashes(draft), sort_keys=True))
            (draft / KEY_FILE).write_text(_key_json(key), encoding="utf-8")
            _publish(draft, folder, fresh=self.fresh)
        return CacheResult(folder, hit=False)

    @contextmanager
    def resumable(self, step: str, key: CacheKey) -> Iterator[Path]:
        """Yield the folder in which long work on this key keeps its state until it is finished.

        A later attempt finds the state of an interrupted one, until nothing is written to it for a
        day; of two processes at work the second has a folder of its own.
        """
        folder = self._folder(step, key)
        self._prepare(folder.parent)
        with atomic.resumable_folder(folder.parent, folder.name) as state:
            yield state

    def entries(self) -> Iterator[CacheEntry]:
        """Yield every cached result, step by step."""
        for folder in self._folders():
            try:
                age = max(0.0, time.time() - folder.stat().st_mtime)
                yield CacheEntry(
                    folder.parent.name, folder, _read_key(folder), folder_bytes(folder), age
                )
            except FileNotFoundError:  # another process has just removed it
                continue

    def clear(self, step: str | None = None) -> list[CacheEntry]:
        """Delete the results of one step, or all, and return what was deleted."""
        entries = [entry for entry in self.entries() if step in (None, entry.step)]
        for entry in entries:
            atomic.remove_folder(entry.path)
        for parent in {
            path.parent for path in (*self._folders(), *(entry.path for entry in entries))
        }:
            atomic.remove_abandoned(parent)
        return entries

    def _folders(self) -> list[Path]:
        """Return the folders of results; none if the root is not marked as a cache."""
        if not (self.root / TAG_FILE).is_file():
            return []
        return sorted(
            folder for folder in self.root.glob("*/*") if re.fullmatch("[0-9a-f]{16}", folder.name)
        )

    def _folder(self, step: str, key: CacheKey) -> Path:
        return self.root / step / hashlib.sha256(_key_json(key).encode()).hexdigest()[:16]

    def _prepare(self, parent: Path) -> None:
        """Create the folder of a step, and mark the root as a cache."""
        parent.mkdir(parents=True, exist_ok=True)
        if not (self.root / TAG_FILE).exists():
            (self.root / TAG_FILE).write_text(TAG_CONTENT, encoding="utf-8")


def open_default(*, fresh: bool = False) -> Cache:
    """Return the cache of this user: `QCONVERT_CACHE_DIR`, or the platform's cache folder.

    Whatever killed processes left in it is removed.
    """
    chosen = os.environ.get("QCONVERT_CACHE_DIR")
    root = Path(chosen) if chosen else platformdirs.user_cache_path("qconvert")
    if (root / TAG_FILE).is_file():
        for folder in root.glob("*/"):
            atomic.remove_abandoned(folder)
    return Cache(root, fresh)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _publish(draft: Path, folder: Path, *, fresh: bool) -> None:
    """Rename a finished result to its final path, unless another process was faster."""
    # Remove only after the rename fails: another process may just have finished the same work.
    while True:
        if fresh:
            atomic.remove_folder(folder)
        try:
            draft.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if not fresh and _is_intact(folder):
            return
        atomic.remove_folder(folder)


def _is_intact(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / HASHES_FILE).read_text(encoding="utf-8"))
        return bool(hashes == _file_hashes(folder))
    except (OSError, ValueError):
        return False


def _file_hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (KEY_FILE, HASHES_FILE)
    }


def _key_json(key: CacheKey) -> str:
    return json.dumps(dict(key), sort_keys=True, indent=1) + "\n"


def _read_key(folder: Path) -> dict[str, str]:
    try:
        key = json.loads((folder / KEY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return key if isinstance(key, dict) else {}
