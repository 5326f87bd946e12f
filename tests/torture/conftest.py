"""One small environment for all long tests, and what a build in it gives when nothing happens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.torture.environment import Environment, make
from tests.torture.run_content import stable_facts


@dataclass(frozen=True)
class Baseline:
    """An undisturbed run: what it left, and what came out."""

    run: Path
    cache: Path
    facts: dict[str, Any]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Write the small net and its images."""
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def baseline(environment: Environment) -> Baseline:
    """Build once, with nothing in the way."""
    run, cache = environment.root / "calm", environment.root / ".calm"
    done = environment.build(run, cache)
    assert done.code == 0, done.err
    return Baseline(run, cache, stable_facts(run))
