"""A search for mixed precision: trials, single blocks, growing sets, the outcome, and resuming."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.backends.ort_profile import OperatorTime
from qconvert.core.config import SearchConfig
from qconvert.core.progress import ignore_progress
from qconvert.core.tensors import RunModel, Tensors
from qconvert.graph.patterns import constant_array
from qconvert.images.listing import ImageEntry
from qconvert.measure.mixed_result import (
    BlockGain,
    LossMeasure,
    MixedResult,
    PredictionLoss,
    SearchStep,
)
from qconvert.optimize.blocks import Block, find_blocks
from qconvert.optimize.faster_blocks import BlockSet, SetTimer, SetTimes, names_of
from qconvert.optimize.mixed_outcome import conclude
from qconvert.optimize.mixed_precision import (
    Profiler,
    Profiles,
    SearchModel,
    SearchSpace,
    find_smallest_set,
    open_trials,
    rank_blocks,
    run_single_blocks,
    search_mixed_precision,
    set_sizes,
)
from qconvert.optimize.trial_records import SearchImages, choose_metric, measure_loss, record_trial
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.plan import Plan, RoundedWeight
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned, scheme

FILE = Path("out/trials.jsonl")
BUDGET = 0.05


def images_of(name: str, seeds: range) -> SearchImages:
    batches = [{"image": floats(8, 3, 16, 16, seed=seed)} for seed in seeds]
    outputs = [open_cpu(mixed())(batch) for batch in batches]
    return SearchImages(name, batches, outputs, [ImageEntry("")] * 8 * len(seeds))


def space_of(
    budget: float = BUDGET,
    by: LossMeasure = "certainty",
    max_latency: float | None = None,
    timer: SetTimer | None = None,
    profiler: Profiler | None = None,
) -> SearchSpace:
    """Return a search over a plan with far too wide ranges, which makes INT8 inaccurate."""
    model = SearchModel(mixed(), planned(mixed(), "cpu"), scheme("cpu"))
    return SearchSpace(
        model,
        find_blocks(model.model, model.plan),
        images_of("search", range(2)),
        images_of("evaluation", range(2, 5)),
        open_trials(FILE, "mixed"),
        SearchConfig(budget, by, max_latency),
        "fp32",
        timer,
        "" if timer else "nothing runs here",
        profiler,
    )


def search(**goal: Any) -> MixedResult:
    return search_mixed_precision(space_of(**goal), ignore_progress)


def timer_of(int8: float, float_ms: float, per_block: float) -> SetTimer:
    def timer(sets: Sequence[BlockSet]) -> SetTimes:
        return {None: [float_ms]} | {
            names_of(blocks): [int8 + per_block * len(blocks)] for blocks in sets
        }

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


@pytest.mark.slow
def test_killed_search_resumes_and_ends_the_same() -> None:
    whole = search()
    lines = FILE.read_text().splitlines(keepends=True)
    for kept in (1, 2, 5, len(lines) - 1):
        FILE.write_text("".join(lines[:kept]) + lines[kept][:20])
        assert search() == whole
        assert sorted(FILE.read_text().splitlines(keepends=True)) == sorted(lines)


class ClosedModel(SearchModel):
    """A model that cannot be opened any more."""

    def open(self, plan: Plan) -> RunModel:
        pytest.fail("opened again")

    def open_segment(self, segment: ir.Model, plan: Plan) -> RunModel:
        pytest.fail("opened again")


def test_finished_search_opens_no_quantized_model_again() -> None:
    whole, space = search(), space_of()
    closed = replace(space, model=ClosedModel(**vars(space.model)))
    assert search_mixed_precision(closed, ignore_progress) == whole


class ScriptedSpace(SearchSpace):
    """A search space in which a set loses a point for each required block that it lacks."""

    def missing(self, blocks: BlockSet, *needed: int) -> PredictionLoss:
        count = len({self.blocks[number].name for number in needed} - {b.name for b in blocks})
        return PredictionLoss(float(count), 0.1, "agreement", 100, 100.0 - count)

    def evaluate(self, blocks: BlockSet, by: LossMeasure) -> SearchStep:
        names = tuple(block.name for block in blocks)
        # One block alone has a larger error than INT8.
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
        assert "no mix stays within 0 points" in result.why


def test_search_is_skipped_if_float_is_as_fast_as_int8() -> None:
    result = search(timer=timer_of(int8=2, float_ms=2, per_block=1))
    assert (result.outcome, result.gains) == ("float", ())
    assert result.why == "fp32 takes 2.00 ms and INT8 2.00: mixing gains nothing"


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


@pytest.mark.parametrize(("limit", "outcome"), [(1.9, "none"), (2.0, "float")])
def test_maximum_latency_holds_for_float_too(limit: float, outcome: str) -> None:
    faster = search(max_latency=limit, timer=timer_of(int8=3, float_ms=2, per_block=1))
    assert faster.outcome == outcome
    assert ("both more than the maximum of 1.9" in faster.why) == (outcome == "none")
    # Here the mix is what float overtakes.
    overtaken = search(max_latency=limit, timer=timer_of(int8=1.8, float_ms=2, per_block=1))
    assert overtaken.outcome == outcome


BLOCK_NAMES = ("stem", "wide", "narrow", "side", "last", "scores")


def profiler_of(**saved: float) -> Profiler:
    """Return the times of blocks that take 2 ms in float and so much longer in INT8."""

    def profile() -> Profiles:
        times = {
            "int8": [OperatorTime(name, "QLinearConv", 2 + saved[name]) for name in BLOCK_NAMES],
            "float": [OperatorTime(name, "Conv", 2.0) for name in BLOCK_NAMES],
        }
        return times

    return profile


SAVED = {"stem": 0.5, "wide": 1.5, "narrow": -1, "side": -1, "last": -1, "scores": -1}


def timer_by_block(calls: list[tuple[str, ...]], conversion: float = 0.0) -> SetTimer:
    """Return a timer of sets that take what the profile says, and a conversion."""

    def timer(sets: Sequence[BlockSet]) -> SetTimes:
        calls.extend(map(names_of, sets))
        times: dict[tuple[str, ...] | None, Sequence[float]] = {None: [12.0]}
        for blocks in sets:
            saved = sum(SAVED[block.name] for block in blocks)
            times[names_of(blocks)] = [12 + sum(SAVED.values()) - saved + conversion * bool(blocks)]
        return times

    return timer


def test_blocks_that_are_faster_in_float_are_the_mix_if_it_keeps_the_budget() -> None:
    timer, profiler = timer_by_block([]), profiler_of(**SAVED)
    result = search(budget=100, timer=timer, profiler=profiler)
    assert (result.outcome, result.gains) == ("mixed", ())
    assert result.chosen == result.faster
    assert result.chosen is not None
    assert result.chosen.lifted == ("stem", "wide")
    assert (result.int8.ms, result.float_ms, result.chosen.ms) == (10, 12, 8)
    assert result.chosen.confirmed is not None
    assert "for speed: 8.00 ms instead of 10.00 in INT8 and 12.00 in fp32" in result.why
    assert {time.block for time in result.times} == set(BLOCK_NAMES)


def test_mix_is_faster_than_both_although_float_is_faster_than_int8() -> None:
    slow_int8 = {**SAVED, "wide": 4.5}
    calls: list[tuple[str, ...]] = []

    def timer(sets: Sequence[BlockSet]) -> SetTimes:
        return {
            names: [samples[0] + 3 * (names == ())]
            for names, samples in timer_by_block(calls)(sets).items()
        }

    result = search(budget=100, timer=timer, profiler=profiler_of(**slow_int8))
    assert result.int8.ms is not None
    assert result.float_ms is not None
    assert result.int8.ms > result.float_ms
    assert (result.outcome, result.faster and result.faster.lifted) == ("mixed", ("stem", "wide"))


def test_int8_is_the_outcome_if_no_set_is_faster() -> None:
    profiler = profiler_of(**SAVED)
    result = search(budget=100, timer=timer_by_block([], conversion=3.0), profiler=profiler)
    assert (result.outcome, result.faster, result.chosen) == ("int8", None, None)
    assert (
        result.why == "INT8 keeps the budget: no block needs float, and no mix with fp32 is faster"
    )
    assert len(result.times) == len(BLOCK_NAMES)


def test_search_for_accuracy_adds_blocks_to_the_faster_ones() -> None:
    calls: list[tuple[str, ...]] = []
    space = space_of(timer=timer_by_block(calls), profiler=profiler_of(**SAVED))
    result = search_mixed_precision(space, ignore_progress)
    assert result.faster is not None
    assert result.faster.confirmed is not None
    assert result.faster.confirmed.pp > BUDGET
    assert {gain.block for gain in result.gains} == {"narrow", "side", "last", "scores"}
    assert result.steps
    assert all(step.lifted[:2] == ("stem", "wide") for step in result.steps)
    assert all(names[:2] in ((), ("stem",), ("stem", "wide")) for names in calls)
    records = open_trials(FILE, "mixed").records
    assert "search: narrow, stem, wide" in records
    assert "search: narrow" not in records
    assert result.chosen is not None
    assert len(result.chosen.lifted) > 2
    assert result.chosen.confirmed is not None
    assert result.chosen.confirmed.pp <= BUDGET
    assert result.chosen.ms is not None
    assert f"{len(result.chosen.lifted) - 2} of them to keep the budget" in result.why
    again = replace(space, trials=open_trials(FILE, "mixed"))
    assert search_mixed_precision(again, ignore_progress) == result


@pytest.mark.parametrize(("ms", "outcome"), [(9.0, "mixed"), (10.5, "int8"), (None, "int8")])
def test_slow_mix_does_not_replace_int8_that_keeps_the_budget(
    ms: float | None, outcome: str
) -> None:
    """The faster blocks alone lose too much, and others for the budget make the mix slower."""
    loss, bad = (PredictionLoss(pp, 0.1, "agreement", 100, 99.0) for pp in (0.1, 9.0))
    step = SearchStep((), 0.0, 0.1, loss, loss, ms=10.0)
    chosen = replace(step, lifted=("stem", "wide", "last"), ms=ms)
    result = conclude(
        MixedResult("int8", "", 1.0, "agreement", "fp32", step, float_ms=12.0,
                    faster=replace(step, lifted=("stem", "wide"), confirmed=bad, ms=8.0),
                    chosen=chosen if ms is not None else None)
    )  # fmt: skip
    assert result.outcome == outcome
    assert (result.chosen is None) == (outcome == "int8")


def test_faster_mix_that_is_too_slow_is_reported() -> None:
    options: dict[str, Any] = {"timer": timer_by_block([]), "profiler": profiler_of(**SAVED)}
    result = search(budget=100, max_latency=7.5, **options)
    assert result.outcome == "none"
    assert result.why == "the fastest mix takes 8.00 ms, more than 7.5"


def test_plan_says_which_blocks_are_in_float_for_speed() -> None:
    space = space_of()
    faster = [block for block in space.blocks if block.name in ("stem", "wide")]
    narrow = [block for block in space.blocks if block.name == "narrow"]
    plan = space.model.keep_faster(faster).restore_float(narrow)
    assert plan.layers["wide"].left == "kept in fp32, in which it runs faster"
    assert plan.layers["narrow"].left == "kept in fp32 to stay within the accuracy budget"
    assert not plan.layers["last"].left


PROBABILITIES = [[[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]], [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]]
REFERENCE = [{"scores": np.log(np.array(batch, np.float32))} for batch in PROBABILITIES]


def with_labels(*labels: int | None) -> SearchImages:
    return SearchImages("all", [], REFERENCE, [ImageEntry("", label=label) for label in labels])


NO_LABELS = with_labels(*[None] * 4)


def test_trial_is_written_at_once_and_read_again() -> None:
    record = {"far": [0.1, float("inf")]}
    open_trials(FILE, "model").put("a", record)
    lines = [json.loads(line) for line in FILE.read_text().splitlines()]
    assert lines == [{"subject": "model"}, {"trial": "a", **record}]
    assert open_trials(FILE, "model").records == {"a": record}


def test_trials_of_another_candidate_are_dropped() -> None:
    open_trials(FILE, "other").put("a", {"far": [1]})
    assert open_trials(FILE, "model").records == {}
    assert FILE.read_text() == '{"subject": "model"}\n'


@pytest.mark.parametrize("torn", ['{"trial": "b", "fa', '{"trial": "b"}x', "\x00\x00\x00"])
def test_unfinished_line_is_dropped(torn: str) -> None:
    open_trials(FILE, "model").put("a", {"far": [1]})
    with FILE.open("a") as file:
        file.write(torn)
    assert open_trials(FILE, "model").records == {"a": {"far": [1]}}
    open_trials(FILE, "model").put("b", {"far": [2]})
    assert set(open_trials(FILE, "model").records) == {"a", "b"}


def predicting(*classes: int) -> list[dict[str, np.ndarray]]:
    scores = np.eye(3, dtype=np.float32)[list(classes)]
    return [{"scores": scores[:2]}, {"scores": scores[2:]}]


def test_changed_prediction_loses_the_probability_that_fp32_gives_up() -> None:
    record = record_trial(NO_LABELS, predicting(0, 1, 2, 0))
    assert record["changed"] == [1]
    assert record["given_up"] == [pytest.approx(0.1)]
    loss = measure_loss(record, "certainty")
    assert loss.pp == pytest.approx(2.5)
    assert loss.agreement == 75.0
    assert measure_loss(record, "agreement").pp == pytest.approx(25)


def test_loss_by_labels_counts_predictions_that_became_right() -> None:
    record = record_trial(with_labels(0, 1, 2, 1), predicting(0, 1, 0, 0))
    assert (record["lost"], record["won"]) == ([2], [1])
    assert measure_loss(record, "top-1").pp == 0


def test_interval_has_a_width_if_no_prediction_changed() -> None:
    record = record_trial(NO_LABELS, REFERENCE)
    metrics: tuple[LossMeasure, ...] = ("top-1", "agreement", "certainty")
    for metric in metrics:
        assert measure_loss(record, metric).pp == 0
        assert measure_loss(record, metric).half_width_pp > 10
    assert record["far"] == [0, 0, 0, 0]


def test_nonfinite_scores_lose_full_probability() -> None:
    outputs = predicting(0, 0, 2, 0)
    outputs[1]["scores"][0] = np.nan
    record = record_trial(NO_LABELS, outputs)
    assert record["given_up"] == [pytest.approx(0.7)]
    assert record["far"][2] == np.inf


def test_labels_count_if_one_image_weighs_no_more_than_the_budget() -> None:
    assert choose_metric(with_labels(*[1] * 200), 0.5) == "top-1"
    assert choose_metric(with_labels(*[1] * 199), 0.5) == "certainty"
    assert choose_metric(with_labels(*[None] * 200), 0.5) == "certainty"
    assert choose_metric(with_labels(*[1] * 200), 0) == "certainty"


BLOCKS = tuple(Block(f"b{number}", (f"n{number}",), 0.01 * (number + 1)) for number in range(8))


def needing(*needed: str) -> Callable[[Sequence[Block]], bool]:
    return lambda blocks: set(needed) <= {block.name for block in blocks}


def smallest(keeps_budget: Callable[[Sequence[Block]], bool]) -> set[str]:
    return {block.name for block in find_smallest_set(BLOCKS, keeps_budget)}


def test_blocks_are_ranked_by_gain_for_cost() -> None:
    gains = [
        BlockGain(block.name, 1, block.share, gain, 0.0)
        for block, gain in zip(BLOCKS[:4], (0.1, 0.5, 0.2, -0.1), strict=True)
    ]
    assert [block.name for block in rank_blocks(BLOCKS[:4], gains)] == ["b1", "b0", "b2", "b3"]


@pytest.mark.parametrize("needed", [("b0",), ("b2", "b7"), ("b1", "b3", "b6"), ("b6",)])
def test_set_has_the_needed_blocks_and_no_others(needed: tuple[str, ...]) -> None:
    assert smallest(needing(*needed)) == set(needed)


def test_set_is_empty_if_none_keeps_the_budget() -> None:
    assert smallest(lambda blocks: False) == set()


def test_set_has_all_blocks_if_all_are_needed() -> None:
    names = {block.name for block in BLOCKS}
    assert smallest(needing(*names)) == names


def test_search_tries_fewer_than_two_sets_per_block() -> None:
    tried: set[frozenset[str]] = set()

    def keeps_budget(blocks: Sequence[Block]) -> bool:
        tried.add(frozenset(block.name for block in blocks))
        return needing("b6")(blocks)

    smallest(keeps_budget)
    assert len(tried) < 2 * len(BLOCKS)


def test_set_sizes_grow_by_halves_and_end_with_all() -> None:
    assert set_sizes(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert [set_sizes(count) for count in (2, 1, 0)] == [[1, 2], [1], []]


BATCHES = [{"image": floats(4, 3, 16, 16, seed=seed)} for seed in range(3)]


def model_of(backend: str) -> SearchModel:
    return SearchModel(mixed(), planned(mixed(), backend), scheme(backend))


def assert_same_outputs(model: SearchModel, plan: Plan, outputs: list[Tensors]) -> None:
    run = model.open(plan)
    for batch, output in zip(BATCHES, outputs, strict=True):
        np.testing.assert_allclose(output["scores"], run(batch)["scores"], atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("max_bytes", [10**9, 20_000, 0])
def test_outputs_do_not_depend_on_the_tensors_held(backend: str, max_bytes: int) -> None:
    model = model_of(backend)
    blocks = find_blocks(model.model, model.plan)
    assert len(blocks) == 6
    trials = run_single_blocks(model, blocks, BATCHES, max_bytes)
    for block, outputs in zip(blocks, trials, strict=True):
        assert_same_outputs(model, model.restore_float([block]), outputs)


def test_blocks_of_an_equalized_model_are_tried_too() -> None:
    model = model_of("tensorrt")
    factors = {"b": tuple(float(factor) for factor in range(1, 17))}
    model = replace(model, plan=replace(model.plan, equalized=factors))
    blocks = find_blocks(model.model, model.plan)
    for block, outputs in zip(blocks, run_single_blocks(model, blocks, BATCHES), strict=True):
        assert_same_outputs(model, model.restore_float([block]), outputs)


@dataclass(frozen=True)
class RecordingModel(SearchModel):
    """A model that records the first node of each segment it opens, by plan."""

    segments: list[tuple[bool, str]] = field(default_factory=list)

    def open_segment(self, segment: ir.Model, plan: Plan) -> RunModel:
        self.segments.append((plan == self.plan, segment.graph[0].name or ""))
        return super().open_segment(segment, plan)


def test_nodes_before_a_block_run_once() -> None:
    model = RecordingModel(mixed(), planned(mixed(), "cpu"), scheme("cpu"))
    blocks = find_blocks(model.model, model.plan)
    list(run_single_blocks(model, blocks, BATCHES))
    starts = [name for is_prefix, name in model.segments if not is_prefix]
    nodes = [str(node.name) for node in model.model.graph]
    plans = [model.restore_float([block]).layers for block in blocks]
    changes = [[n for n in nodes if plan.get(n) != model.plan.layers.get(n)] for plan in plans]
    assert starts == [names[0] for names in changes if names[0] != nodes[0]]
    assert starts == sorted(starts, key=nodes.index)
    prefixes = [name for is_prefix, name in model.segments if is_prefix]
    assert len(prefixes) == len(set(prefixes))


def test_learned_weights_stay_in_int8_nodes_and_leave_float_ones() -> None:
    plain = model_of("cpu")
    weights = {
        name: RoundedWeight(np.ones((16, 16, 1, 1), np.int8), np.full(16, 0.01, np.float32), None)
        for name in ("narrow", "side")
    }
    learned = replace(
        plain, plan=replace(plain.plan, learned=plan_files.weights_digest(weights)), weights=weights
    )
    blocks = {block.name: block for block in find_blocks(plain.model, plain.plan)}
    plans = {name: learned.restore_float([block]) for name, block in blocks.items()}
    for name, plan in plans.items():
        nodes = {node.name: node for node in apply_plan(learned.model, plan, weights).graph}
        for weight in weights:
            float_weight = constant_array(nodes[weight].inputs[1])
            assert (float_weight is not None) == (weight == name)
    (outputs,) = run_single_blocks(learned, [blocks["narrow"]], BATCHES)
    assert_same_outputs(learned, plans["narrow"], outputs)
