"""A cached step computes once for a key, and returns the same value every time."""

import math
from dataclasses import dataclass
from pathlib import Path

import pydantic
import pytest

from qconvert.core.cache import Cache
from qconvert.core.cached_step import JsonCodec, StepResult, cached_step


@dataclass(frozen=True)
class Score:
    name: str
    values: tuple[float, ...]


CODEC = JsonCodec("scores.json", pydantic.TypeAdapter(dict[str, Score]))
SCORES = {"int8": Score("top1", (0.1, math.inf, -math.inf))}


def run(
    cache: Cache, key: str = "a", scores: dict[str, Score] | None = SCORES
) -> StepResult[dict[str, Score]]:
    def compute() -> dict[str, Score]:
        if scores is None:
            raise AssertionError("computed again")
        return scores

    return cached_step(cache, "evaluate", {"name": key}, compute, CODEC)


def test_second_call_with_the_same_key_is_a_hit_with_an_equal_value(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first, second = run(cache), run(cache, scores=None)
    assert (first.hit, second.hit) == (False, True)
    assert first.value == second.value == SCORES
    assert first.folder == second.folder


def test_other_key_is_computed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    run(cache)
    assert run(cache, "b", {}).value == {}


def test_nan_survives_the_cache(tmp_path: Path) -> None:
    value = run(Cache(tmp_path), scores={"x": Score("y", (math.nan,))}).value["x"].values[0]
    assert math.isnan(value)


def test_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(AssertionError, match="computed again"):
        run(cache, scores=None)
    assert list(cache.entries()) == []
