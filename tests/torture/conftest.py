"""One small environment for all torture tests, and the result of an undisturbed build in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.torture.environment import Environment, make
from tests.torture.run_content import stable_facts


@dataclass(frozen=True)
class Baseline:
    """An undisturbed run: its folder, its cache and its reproducible facts."""

    run: Path
    cache: Path
    facts: dict[str, Any]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Write the small network and its images."""
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def baseline(environment: Environment) -> Baseline:
    """Build once without any disturbance."""
    run, cache = environment.root / "calm", environment.root / ".calm"
    outcome = environment.build(run, cache)
    assert outcome.code == 0, outcome.err
    return Baseline(run, cache, stable_facts(run))
