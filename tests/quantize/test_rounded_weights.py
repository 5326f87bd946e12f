"""Learned weights keep their integers: in the file, in the graph, and beside their plan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.quantize import plan_files, rounded_weights
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.quantize.rounded_weights import RoundedWeight
from tests.models import mixed
from tests.quantize.quantized_models import planned


def some(seed: int = 0) -> dict[str, RoundedWeight]:
    pick = np.random.default_rng(seed)
    whole = pick.integers(-127, 128, (16, 16, 1, 1)).astype(np.int8)
    steps = pick.random(16, dtype=np.float32) + np.float32(0.01)
    return {
        "narrow": RoundedWeight(whole, steps, pick.random(16, dtype=np.float32)),
        "a/b": RoundedWeight(whole, steps, None),
    }


def test_what_is_saved_is_what_is_loaded_and_the_same_weights_are_the_same_bytes() -> None:
    for name in ("a.npz", "b.npz"):
        rounded_weights.save(some(), Path(name))
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    found = rounded_weights.load(Path("a.npz"))
    assert found["a/b"].bias is None
    assert rounded_weights.digest(found) == rounded_weights.digest(some())
    assert rounded_weights.digest(found) != rounded_weights.digest(some(seed=1))
    assert rounded_weights.digest({}) == ""


def test_a_damaged_or_foreign_file_is_refused() -> None:
    rounded_weights.save(some(), Path("a.npz"))
    Path("cut.npz").write_bytes(Path("a.npz").read_bytes()[:-40])
    wrong: dict[str, Any] = {"x/integers": np.zeros(3, np.int64), "x/steps": np.zeros(3)}
    np.savez("wrong.npz", **wrong)
    np.savez("other.npz", name=np.zeros(3))
    Path("text.npz").write_text("no")
    for name in ("cut.npz", "wrong.npz", "other.npz", "text.npz", "gone.npz"):
        with pytest.raises(QConvertError, match="holds no learned weights") as caught:
            rounded_weights.load(Path(name))
        assert caught.value.hint


def test_a_plan_lies_beside_its_weights_and_is_nothing_without_them() -> None:
    weights = some()
    plan = rounded_weights.with_digest(planned(mixed(), "cpu"), weights)
    plan_files.save_plan(PlanWithWeights(plan, weights), Path("plan.json"))
    found = plan_files.load_plan(Path("plan.json"))
    assert found.plan == plan
    assert rounded_weights.digest(found.weights) == plan.learned
    rounded_weights.save(some(seed=1), Path("plan.learned.npz"))
    with pytest.raises(UsageError, match="other learned weights"):
        plan_files.load_plan(Path("plan.json"))
    Path("plan.learned.npz").unlink()
    with pytest.raises(UsageError, match="is not there") as caught:
        plan_files.load_plan(Path("plan.json"))
    assert "learned" in str(caught.value.hint)


def test_a_plan_without_learned_weights_leaves_none_of_another_beside_it() -> None:
    plan = planned(mixed(), "cpu")
    plan_files.save_plan(
        PlanWithWeights(rounded_weights.with_digest(plan, some()), some()), Path("plan.json")
    )
    plan_files.save_plan(PlanWithWeights(plan), Path("plan.json"))
    assert not Path("plan.learned.npz").exists()
    assert plan_files.load_plan(Path("plan.json")) == PlanWithWeights(plan)
