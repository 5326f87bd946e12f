"""A search on a small network: what it says, and that it goes on where it was killed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core.tensors import Tensors
from qconvert.measure.mixed_result import MixedResult
from qconvert.optimize.blocks import find_blocks
from qconvert.optimize.mixed_precision import (
    BlockSet,
    SearchGoal,
    SearchImages,
    SearchSpace,
    SetTimer,
    search_mixed_precision,
)
from qconvert.optimize.sensitivity import SearchModel
from qconvert.optimize.trials import ReferenceOutputs, open_trials
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned, scheme

FILE = Path("trials.jsonl")
GOAL = SearchGoal(budget=0.05, by="certainty", rest="fp32")


def sample(name: str, seeds: range) -> SearchImages:
    def images() -> Iterator[Tensors]:
        for seed in seeds:
            yield {"image": floats(8, 3, 16, 16, seed=seed)}

    answers = [open_cpu(mixed())(feeds) for feeds in images()]
    return SearchImages(name, images, ReferenceOutputs(answers, [None] * 8 * len(seeds)))


def quest(clock: SetTimer | None = None) -> SearchSpace:
    """Return a search over a plan whose made-up ranges are far too wide, so that INT8 errs."""
    model = mixed()
    subject = SearchModel(model, planned(model, "cpu"), scheme("cpu"))
    return SearchSpace(
        subject,
        find_blocks(model, subject.plan),
        sample("search", range(2)),
        sample("evaluation", range(2, 5)),
        open_trials(FILE, "mixed"),
        clock,
        "" if clock else "nothing runs here",
    )


def searched(goal: SearchGoal = GOAL, clock: SetTimer | None = None) -> MixedResult:
    return search_mixed_precision(quest(clock), goal, lambda text, done, total: None)


def clock_of(plain: float, other: float, each: float) -> SetTimer:
    def clock(sets: Sequence[BlockSet]) -> Mapping[tuple[str, ...] | None, float]:
        found: dict[tuple[str, ...] | None, float] = {None: other}
        for lifted in sets:
            found[tuple(block.name for block in lifted)] = plain + each * len(lifted)
        return found

    return clock


def test_the_mix_keeps_the_budget_and_lifting_it_gives_those_answers() -> None:
    found = searched()
    assert found.outcome == "mixed"
    assert found.chosen is not None
    assert 0 < len(found.chosen.lifted) < len(quest().blocks)
    assert found.int8.confirmed is not None
    assert found.chosen.confirmed is not None
    assert found.chosen.confirmed.pp <= GOAL.budget < found.int8.confirmed.pp
    assert found.untimed == "nothing runs here"
    whole = quest()
    lifted = [block for block in whole.blocks if block.name in found.chosen.lifted]
    run = whole.model.open_segment(whole.model.restore_float(lifted))
    same = [
        (run(feeds)["scores"].argmax(1) == wanted["scores"].argmax(1)).mean()
        for feeds, wanted in zip(
            whole.evaluation_images.batches(),
            whole.evaluation_images.reference.outputs,
            strict=True,
        )
    ]
    assert 100 * float(np.mean(same)) == pytest.approx(found.chosen.confirmed.agreement)


def test_a_search_that_was_killed_goes_on_and_ends_the_same() -> None:
    whole = searched()
    lines = FILE.read_text().splitlines(keepends=True)
    for kept in (1, 2, 5, len(lines) - 1):
        FILE.write_text("".join(lines[:kept]) + lines[kept][:20])
        assert searched() == whole
        assert sorted(FILE.read_text().splitlines(keepends=True)) == sorted(lines)


def test_a_search_that_is_done_runs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searched()
    monkeypatch.setattr(SearchModel, "opened", lambda *given: pytest.fail("run again"))
    assert searched() == whole


def test_where_int8_keeps_the_budget_nothing_is_tried() -> None:
    found = searched(replace(GOAL, budget=100))
    assert (found.outcome, found.chosen, found.gains) == ("int8", None, ())
    assert len(FILE.read_text().splitlines()) == 3


def test_where_no_mix_keeps_the_budget_it_says_so() -> None:
    found = searched(replace(GOAL, budget=0, by="agreement"))
    if found.outcome == "mixed":
        assert found.chosen is not None
        assert found.chosen.confirmed is not None
        assert found.chosen.confirmed.agreement == 100
    else:
        assert found.outcome == "none"
        assert "no mix loses as little as 0 points" in found.why


def test_where_float_is_as_fast_as_int8_there_is_nothing_to_search() -> None:
    found = searched(clock=clock_of(plain=2, other=2, each=1))
    assert (found.outcome, found.gains) == ("float", ())
    assert found.why == "fp32 takes 2.00 ms and INT8 2.00: there is nothing to gain"


def test_where_the_mix_is_as_slow_as_float_it_is_no_use() -> None:
    found = searched(clock=clock_of(plain=1, other=1.5, each=1))
    assert found.outcome == "float"
    assert "and fp32 alone 1.50" in found.why


def test_a_latency_asked_for_is_kept_or_the_search_says_no() -> None:
    clock = clock_of(plain=1, other=10, each=0.1)
    found = searched(replace(GOAL, max_latency=5.0), clock)
    assert found.outcome == "mixed"
    assert found.chosen is not None
    assert found.chosen.ms == pytest.approx(1 + 0.1 * len(found.chosen.lifted))
    assert searched(replace(GOAL, max_latency=1.05), clock).outcome == "none"
    assert "INT8 alone takes 1.00 ms" in searched(replace(GOAL, max_latency=0.5), clock).why
