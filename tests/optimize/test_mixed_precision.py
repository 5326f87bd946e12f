"""A search on a small network: its outcome, and that it resumes where it was killed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core.progress import ignore_progress
from qconvert.measure.mixed_result import LossMeasure, MixedResult, PredictionLoss, SearchStep
from qconvert.optimize.blocks import find_blocks
from qconvert.optimize.mixed_precision import (
    BlockSet,
    SearchImages,
    SearchModel,
    SearchSpace,
    SetTimer,
    open_trials,
    search_mixed_precision,
)
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned, scheme

FILE = Path("trials.jsonl")
BUDGET = 0.05


def images_of(name: str, seeds: range) -> SearchImages:
    batches = [{"image": floats(8, 3, 16, 16, seed=seed)} for seed in seeds]
    outputs = [open_cpu(mixed())(batch) for batch in batches]
    return SearchImages(name, batches, outputs, [None] * 8 * len(seeds))


def space_of(
    budget: float = BUDGET,
    by: LossMeasure = "certainty",
    max_latency: float | None = None,
    timer: SetTimer | None = None,
) -> SearchSpace:
    """Return a search over a plan whose ranges are far too wide, so that INT8 errs."""
    model = SearchModel(mixed(), planned(mixed(), "cpu"), scheme("cpu"))
    return SearchSpace(
        model,
        find_blocks(model.model, model.plan),
        images_of("search", range(2)),
        images_of("evaluation", range(2, 5)),
        open_trials(FILE, "mixed"),
        budget,
        by,
        "fp32",
        max_latency,
        timer,
        "" if timer else "nothing runs here",
    )


def search(**goal: Any) -> MixedResult:
    return search_mixed_precision(space_of(**goal), ignore_progress)


def timer_of(int8: float, float_ms: float, per_block: float) -> SetTimer:
    def timer(sets: Sequence[BlockSet]) -> Mapping[tuple[str, ...] | None, float]:
        times: dict[tuple[str, ...] | None, float] = {None: float_ms}
        for blocks in sets:
            times[tuple(block.name for block in blocks)] = int8 + per_block * len(blocks)
        return times

    return timer


def test_mix_keeps_the_budget_and_its_plan_gives_the_reported_agreement() -> None:
    result, space = search(), space_of()
    assert result.outcome == "mixed"
    assert result.chosen is not None
    assert 0 < len(result.chosen.lifted) < len(space.blocks)
    assert result.int8.confirmed is not None
    assert result.chosen.confirmed is not None
    assert result.chosen.confirmed.pp <= BUDGET < result.int8.confirmed.pp
    assert result.untimed == "nothing runs here"
    chosen = [block for block in space.blocks if block.name in result.chosen.lifted]
    run, images = space.model.open(space.model.restore_float(chosen)), space.evaluation_images
    agreement = [
        (run(batch)["scores"].argmax(1) == outputs["scores"].argmax(1)).mean()
        for batch, outputs in zip(images.batches, images.outputs, strict=True)
    ]
    assert 100 * float(np.mean(agreement)) == pytest.approx(result.chosen.confirmed.agreement)


def test_killed_search_resumes_and_ends_the_same() -> None:
    whole = search()
    lines = FILE.read_text().splitlines(keepends=True)
    for kept in (1, 2, 5, len(lines) - 1):
        FILE.write_text("".join(lines[:kept]) + lines[kept][:20])
        assert search() == whole
        assert sorted(FILE.read_text().splitlines(keepends=True)) == sorted(lines)


def test_finished_search_opens_no_quantized_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search()
    for method in ("open", "open_segment"):
        monkeypatch.setattr(SearchModel, method, lambda *_: pytest.fail("opened again"))
    assert search() == whole


class ScriptedSpace(SearchSpace):
    """A space in which sets lose a point for each of some blocks that is not among them."""

    def missing(self, blocks: BlockSet, *needed: int) -> PredictionLoss:
        count = len({self.blocks[number].name for number in needed} - {b.name for b in blocks})
        return PredictionLoss(float(count), 0.1, "agreement", 100, 100.0 - count)

    def evaluate(self, blocks: BlockSet, by: LossMeasure) -> SearchStep:
        names = tuple(block.name for block in blocks)
        # One block alone is further from FP32 than INT8.
        distance = 2.0 if len(blocks) == 1 else 1.0
        share = sum(block.share for block in blocks)
        return SearchStep(names, share, distance, self.missing(blocks, 0))

    def confirm(self, blocks: BlockSet, by: LossMeasure) -> PredictionLoss:
        return self.missing(blocks, 0, 4)


def test_chosen_set_keeps_the_budget_on_both_image_sets() -> None:
    space = space_of(budget=0.5)
    scripted = ScriptedSpace(**{name: getattr(space, name) for name in vars(space)})
    result = search_mixed_precision(scripted, ignore_progress)
    assert result.chosen is not None
    assert {space.blocks[0].name, space.blocks[4].name} <= set(result.chosen.lifted)
    for step in result.steps:
        assert (step.confirmed is None) == (step.search.pp > 0.5 or step.distance > 1.0)


def test_int8_within_the_budget_needs_no_search() -> None:
    result = search(budget=100)
    assert (result.outcome, result.chosen, result.gains) == ("int8", None, ())
    assert len(FILE.read_text().splitlines()) == 3


def test_budget_that_no_mix_keeps_is_reported() -> None:
    result = search(budget=0, by="agreement")
    if result.outcome == "mixed":
        assert result.chosen is not None
        assert result.chosen.confirmed is not None
        assert result.chosen.confirmed.agreement == 100
    else:
        assert result.outcome == "none"
        assert "no mix loses as little as 0 points" in result.why


def test_float_as_fast_as_int8_needs_no_search() -> None:
    result = search(timer=timer_of(int8=2, float_ms=2, per_block=1))
    assert (result.outcome, result.gains) == ("float", ())
    assert result.why == "fp32 takes 2.00 ms and INT8 2.00: there is nothing to gain"


def test_float_as_fast_as_the_mix_is_the_outcome() -> None:
    result = search(timer=timer_of(int8=1, float_ms=1.5, per_block=1))
    assert result.outcome == "float"
    assert "and fp32 alone 1.50" in result.why


def test_maximum_latency_decides_the_outcome() -> None:
    timer = timer_of(int8=1, float_ms=10, per_block=0.1)
    result = search(max_latency=5.0, timer=timer)
    assert result.outcome == "mixed"
    assert result.chosen is not None
    assert result.chosen.ms == pytest.approx(1 + 0.1 * len(result.chosen.lifted))
    assert search(max_latency=1.05, timer=timer).outcome == "none"
    assert "INT8 alone takes 1.00 ms" in search(max_latency=0.5, timer=timer).why
