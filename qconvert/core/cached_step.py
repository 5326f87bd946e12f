"""One step whose result is cached: computed once for a key, and from then on read from the cache.

    result = cached_step(cache, "evaluate", key, compute, JsonCodec("scores.json", ADAPTER))

`key` names everything that decides the result: digests of the inputs, settings, versions. The
result is always read back from the cache, so that the first run sees what every later run sees.
Work whose result is files (an engine) calls `Cache.get_or_make` itself.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import pydantic

from qconvert.core.cache import Cache, CacheKey

T = TypeVar("T")


class Codec(Protocol[T]):
    """How a result is written to a folder of the cache, and read from it."""

    def save(self, value: T, folder: Path) -> None:
        """Write the result into an empty folder."""

    def load(self, folder: Path) -> T:
        """Read the result that `save` wrote."""


@dataclass(frozen=True)
class JsonCodec(Generic[T]):
    """A result that is one JSON file.

    Infinities and NaN are kept, as Python's JSON writes them, or become None if `finite`.
    """

    file: str
    adapter: pydantic.TypeAdapter[T]
    finite: bool = False

    def save(self, value: T, folder: Path) -> None:
        """Write the file."""
        if self.finite:
            text = self.adapter.dump_json(value, indent=1).decode()
        else:
            text = json.dumps(self.adapter.dump_python(value, mode="json"), indent=1)
        (folder / self.file).write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> T:
        """Read the file and check its types."""
        text = (folder / self.file).read_text(encoding="utf-8")
        return self.adapter.validate_python(json.loads(text))


@dataclass(frozen=True)
class StepResult(Generic[T]):
    """The result of a step, whether it came from the cache, and the folder it was read from."""

    value: T
    hit: bool
    folder: Path


def cached_step(
    cache: Cache, name: str, key: CacheKey, compute: Callable[[], T], codec: Codec[T]
) -> StepResult[T]:
    """Return the result of the step for this key; `compute` runs only if it is not cached."""
    entry = cache.get_or_make(name, key, lambda folder: codec.save(compute(), folder))
    return StepResult(codec.load(entry.path), entry.hit, entry.path)
