"""Cached results of finished steps, found by a hash of everything that decides them.

A result is a folder named after the hash of its key; it is complete or does not exist. It is built
in a temporary folder beside its final path and then renamed: of two processes that do the same
work, one renames first and the other uses its result. Damaged results are computed again.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import platformdirs
import pydantic

from qconvert.core import atomic
from qconvert.core.errors import attach_path

KEY_FILE = "recipe.json"
HASHES_FILE = "content.json"
TAG_FILE = "CACHEDIR.TAG"

T = TypeVar("T")
CacheKey = Mapping[str, str]  # everything that decides a result: digests, settings, versions


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

    def get_or_make(
        self, step: str, key: CacheKey, make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """Return the folder of a result, and whether it was cached; `make` fills a new one."""
        folder = self._prepare_folder(step, key)
        if not self.fresh and _is_intact(folder):
            return folder, True
        with attach_path(self.root), atomic.temporary_folder(folder.parent) as draft:
            make(draft)
            (draft / HASHES_FILE).write_text(json.dumps(_file_hashes(draft), sort_keys=True))
            (draft / KEY_FILE).write_text(_key_json(key), encoding="utf-8")
            while True:
                try:
                    draft.rename(folder)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                # Another process may just have finished the same work.
                if not self.fresh and _is_intact(folder):
                    break
                atomic.remove_folder(folder)
        return folder, False

    def resumable(self, step: str, key: CacheKey) -> AbstractContextManager[Path]:
        """Return the folder in which long work on this key keeps its state until it is finished."""
        folder = self._prepare_folder(step, key)
        return atomic.resumable_folder(folder.parent, folder.name)

    def entries(self) -> Iterator[CacheEntry]:
        """Yield every cached result, step by step; none if the root is not marked as a cache."""
        is_cache = (self.root / TAG_FILE).is_file()
        for folder in sorted(self.root.glob("*/*")) if is_cache else ():
            if not re.fullmatch("[0-9a-f]{16}", folder.name):
                continue
            try:
                recipe = dict(json.loads((folder / KEY_FILE).read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                recipe = {}
            with suppress(FileNotFoundError):  # another process has just removed it
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                age = max(0.0, time.time() - folder.stat().st_mtime)
                yield CacheEntry(folder.parent.name, folder, recipe, size, age)

    def clear(self, step: str | None = None) -> list[CacheEntry]:
        """Delete the results of one step, or all, and return what was deleted."""
        entries = [entry for entry in self.entries() if step in (None, entry.step)]
        for entry in entries:
            atomic.remove_folder(entry.path)
        return entries

    def _prepare_folder(self, step: str, key: CacheKey) -> Path:
        """Return the path of a result; its parent is created, and the root marked as a cache."""
        (self.root / step).mkdir(parents=True, exist_ok=True)
        if not (self.root / TAG_FILE).exists():
            signature = "Signature: 8a477f597d28d172789f06886806bc55"
            text = f"{signature}\n# Made by qconvert; may be deleted at any time.\n"
            (self.root / TAG_FILE).write_text(text, encoding="utf-8")
        return self.root / step / hashlib.sha256(_key_json(key).encode()).hexdigest()[:16]


def open_default(*, fresh: bool = False) -> Cache:
    """Return the user's cache (`QCONVERT_CACHE_DIR`) without the remnants of killed processes."""
    chosen = os.environ.get("QCONVERT_CACHE_DIR")
    root = Path(chosen) if chosen else platformdirs.user_cache_path("qconvert")
    if (root / TAG_FILE).is_file():
        for folder in root.glob("*/"):
            atomic.remove_abandoned(folder)
    return Cache(root, fresh)


@dataclass(frozen=True)
class JsonCodec(Generic[T]):
    """A result that is one JSON file; if `finite`, infinities and NaN become None in it."""

    file: str
    value_type: type[T]
    finite: bool = False

    def save(self, value: T, folder: Path) -> None:
        """Write the file."""
        adapter = pydantic.TypeAdapter(self.value_type)
        if self.finite:
            text = adapter.dump_json(value, indent=1).decode()
        else:
            text = json.dumps(adapter.dump_python(value, mode="json"), indent=1)
        (folder / self.file).write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> T:
        """Read the file and check its types."""
        text = (folder / self.file).read_text(encoding="utf-8")
        return pydantic.TypeAdapter(self.value_type).validate_python(json.loads(text))


def cached_step(
    cache: Cache, name: str, key: CacheKey, compute: Callable[[], T], codec: JsonCodec[T]
) -> tuple[T, bool]:
    """Return the result of the step for this key, computed if it is not cached, and if it was.

    The result is always read back from the cache: the first run sees what every later run sees.
    """
    folder, hit = cache.get_or_make(name, key, lambda draft: codec.save(compute(), draft))
    return codec.load(folder), hit


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
