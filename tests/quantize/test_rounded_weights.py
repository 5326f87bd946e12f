"""Learned weights keep their integers in their file, and belong to the plan beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.quantize import plan_files
from qconvert.quantize.plan import RoundedWeight
from qconvert.quantize.plan_files import PlanWithWeights
from tests.models import mixed
from tests.quantize.quantized_models import planned

FILE, PLAN = Path("plan.learned.npz"), Path("plan.json")


def random_weights(seed: int = 0) -> dict[str, RoundedWeight]:
    generator = np.random.default_rng(seed)
    integers = generator.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8)
    steps = generator.random(16, dtype=np.float32) + np.float32(0.01)
    return {
        "narrow": RoundedWeight(integers, steps, generator.random(16, dtype=np.float32)),
        "a/b": RoundedWeight(integers, steps, None),
    }


def plan_with_weights() -> PlanWithWeights:
    weights = random_weights()
    return PlanWithWeights(
        replace(planned(mixed(), "cpu"), learned=plan_files.weights_digest(weights)), weights
    )


def test_file_keeps_the_weights_and_has_the_same_bytes_every_time() -> None:
    for name in ("a.npz", "b.npz"):
        plan_files.save_weights(random_weights(), Path(name))
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    loaded = plan_files.load_weights(Path("a.npz"))
    assert loaded["a/b"].bias is None
    assert plan_files.weights_digest(loaded) == plan_files.weights_digest(random_weights())
    assert plan_files.weights_digest(loaded) != plan_files.weights_digest(random_weights(seed=1))
    assert plan_files.weights_digest({}) == ""


@pytest.mark.parametrize("name", ["cut", "wrong", "other", "text", "missing"])
def test_corrupt_or_foreign_file_is_rejected(name: str) -> None:
    plan_files.save_weights(random_weights(), FILE)
    Path("cut.npz").write_bytes(FILE.read_bytes()[:-40])
    float64: dict[str, Any] = {"x/integers": np.zeros(3, np.int64), "x/steps": np.zeros(3)}
    np.savez("wrong.npz", **float64)
    np.savez("other.npz", name=np.zeros(3))
    Path("text.npz").write_text("no")
    with pytest.raises(QConvertError, match="has no learned weights") as caught:
        plan_files.load_weights(Path(f"{name}.npz"))
    assert caught.value.hint


def test_plan_is_rejected_without_its_own_weights_beside_it() -> None:
    saved = plan_with_weights()
    plan_files.save_plan(saved, PLAN)
    loaded = plan_files.load_plan(PLAN)
    assert loaded.plan == saved.plan
    assert plan_files.weights_digest(loaded.weights) == saved.plan.learned
    plan_files.save_weights(random_weights(seed=1), FILE)
    with pytest.raises(UsageError, match="other learned weights"):
        plan_files.load_plan(PLAN)
    FILE.unlink()
    with pytest.raises(UsageError, match="is missing") as caught:
        plan_files.load_plan(PLAN)
    assert "learned" in str(caught.value.hint)


def test_plan_without_learned_weights_removes_those_of_an_earlier_plan() -> None:
    plan_files.save_plan(plan_with_weights(), PLAN)
    plain = PlanWithWeights(planned(mixed(), "cpu"))
    plan_files.save_plan(plain, PLAN)
    assert not FILE.exists()
    assert plan_files.load_plan(PLAN) == plain
