"""One small world for all long tests, and what a build in it gives when nothing happens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.torture.whole import facts
from tests.torture.world import World, make


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: what it left, and what came out."""

    run: Path
    cache: Path
    facts: dict[str, Any]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Write the small net and its pictures."""
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def calm(world: World) -> Calm:
    """Build once, with nothing in the way."""
    run, cache = world.root / "calm", world.root / ".calm"
    done = world.build(run, cache)
    assert done.code == 0, done.err
    return Calm(run, cache, facts(run))
