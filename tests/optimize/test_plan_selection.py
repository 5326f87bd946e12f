"""Select a plan: methods and equalization replace the default only if the outputs are better."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.progress import Progress
from qconvert.core.scales import Grid, Range
from qconvert.core.tensors import Tensors
from qconvert.graph.passes import infer_shapes
from qconvert.measure.output_error import ErrorArray, OutputError, sqnr_db
from qconvert.optimize import plan_selection
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import EFFORTS, MAX_TRAINING_IMAGES, Candidate, is_better
from qconvert.optimize.equalization import choose_equalization, choose_factors
from qconvert.optimize.plan_selection import (
    assign_methods,
    best_method,
    choose_methods,
    contested_ranges,
    initial_options,
    select_plan,
)
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import find_sites
from qconvert.quantize.placement import DEFAULT_METHOD, QuantizeOptions
from qconvert.quantize.plan import Plan
from tests.models import MIXED_SHAPES, floats, from_text, mixed
from tests.optimize.calibrated import candidate_of, equalized_candidate
from tests.quantize.quantized_models import HEAD

ERRORS = np.random.default_rng(0).exponential(1.0, 40)


class Selected(NamedTuple):
    plan: Plan
    tried: dict[str, float]
    notes: tuple[str, ...]


def select(candidate: Candidate, effort: str, method: str) -> Selected:
    options = initial_options(QuantizeOptions(method=method))
    original = candidate = replace(candidate, options=options)
    if EFFORTS[effort].equalize:
        summaries = original.calibration.training.summaries
        if factors := choose_factors(original.loaded.model, summaries):
            candidate = choose_equalization(original, equalized_candidate(original, factors))
    return Selected(*select_plan(original, candidate, method, effort), candidate.notes)


def sqnr_of(candidate: Candidate, plan: Plan) -> float:
    """Return the SQNR of the outputs of a plan on the held-out images."""
    model = candidate.loaded.model
    batch = next(iter(candidate.calibration.validation_batches()))
    quantized = open_cpu(apply_plan(model, plan), keep_qdq=True)
    return sqnr_db(open_cpu(model)(batch), quantized(batch))


def uneven_channels() -> ir.Model:
    """Return a network in which one channel of a tensor is far larger than all others."""
    sizes = np.float32(2.0) ** np.r_[8, np.zeros(15)].astype(np.float32)
    weights = {
        name: floats(*MIXED_SHAPES[name], seed=seed) / np.float32(4)
        for seed, name in enumerate(("w2", "b2", "w3"), start=1)
    }
    return mixed(
        w2=weights["w2"] * sizes[:, None, None, None],
        b2=weights["b2"] * sizes,
        w3=weights["w3"] / sizes[:, None, None],
    )


@pytest.fixture
def events() -> list[Progress]:
    return []


@pytest.fixture
def candidate(events: list[Progress]) -> Candidate:
    return candidate_of(mixed(), progress=events.append)


def texts(events: list[Progress], step: str) -> list[str]:
    return [event.text for event in events if event.step == step and event.seconds]


def test_default_effort_reports_the_output_error_of_every_method(
    candidate: Candidate, events: list[Progress]
) -> None:
    plan = select(candidate, "default", "auto")
    assert set(plan.tried) >= {"mse", "minmax", "percentile:99.99"}
    (text,) = texts(events, "choose")
    assert "on 8 held-out images" in text


def test_description_of_images_counts_those_held_out(candidate: Candidate) -> None:
    errors = (OutputError(np.zeros(count), 0.0) for count in (8, 20))
    assert [candidate.describe_images(error) for error in errors] == [
        "on 8 held-out images",
        "on 20 images, 8 of them held out",
    ]


@pytest.mark.parametrize("effort", ["none", "quick"])
def test_low_effort_selects_default_method_without_trials(
    candidate: Candidate, effort: str, events: list[Progress]
) -> None:
    selected = select(candidate, effort, "mse")
    assert (selected.plan.method, selected.tried, selected.plan.equalized) == ("mse", {}, {})
    assert events == []


def test_per_tensor_methods_are_no_worse_than_the_default(candidate: Candidate) -> None:
    default = select(candidate, "none", "mse").plan
    per_tensor = select(candidate, "none", "answers").plan
    assert per_tensor.method in ("answers", "mse")
    assert sqnr_of(candidate, per_tensor) > sqnr_of(candidate, default) - 0.5


def test_uneven_channels_are_equalized_and_the_plan_replays() -> None:
    candidate = candidate_of(uneven_channels())
    plain, equalized = select(candidate, "none", "mse"), select(candidate, "default", "mse")
    assert equalized.plan.equalized
    assert "accepted" in equalized.notes[0]
    assert sqnr_of(candidate, equalized.plan) > sqnr_of(candidate, plain.plan) + 3
    replayed = plan_files.parse_plan(plan_files.format_plan(equalized.plan), "plan.json")
    assert replayed == equalized.plan
    models = [apply_plan(candidate.loaded.model, plan) for plan in (equalized.plan, replayed)]
    assert onnx_io.serialize(models[0]) == onnx_io.serialize(models[1])


def test_factors_that_do_not_help_are_rejected_and_reported(
    candidate: Candidate, events: list[Progress]
) -> None:
    site = find_sites(candidate.loaded.model.graph)[0]
    factors = {str(site.tensor.name): tuple(4.0 ** (n % 6) for n in range(site.channels))}
    assert choose_equalization(candidate, equalized_candidate(candidate, factors)) is candidate
    (text,) = texts(events, "equalize")
    assert "rejected" in text


def test_budget_of_work_bounds_the_images_for_per_tensor_methods(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def choose(model: object, ranges: object, batches: list[Tensors], *_: object) -> list[object]:
        counts.append(len(batches))
        return []

    monkeypatch.setattr(plan_selection, "choose_methods", choose)
    for max_macs in (1e12, 1e7, 1.0):
        assign_methods(candidate, max_macs)
    assert counts[0] == MAX_TRAINING_IMAGES // CALIBRATION_BATCH
    assert len(counts) == 2
    assert counts[0] > counts[1] > 0


def error(per_image: ErrorArray, noise_to_signal: float = 0.1) -> OutputError:
    return OutputError(per_image, noise_to_signal)


def test_change_is_better_only_beyond_chance() -> None:
    infinite = error(np.full(40, np.inf), np.inf)
    assert is_better(error(ERRORS), error(ERRORS * 0.8))
    assert not is_better(error(ERRORS), error(ERRORS))
    assert not is_better(error(ERRORS, 1.0), error(ERRORS * 0.8, 1.1))
    assert not is_better(error(ERRORS[:3]), error(ERRORS[:3] * 0.8))
    assert not is_better(error(ERRORS), infinite)
    assert is_better(infinite, error(ERRORS))


def test_trained_change_is_better_unless_errors_or_changed_predictions_grow() -> None:
    def trained(noise: float, per_image: ErrorArray, changed: int = 0) -> bool:
        predictions = np.r_[np.ones(changed), np.zeros(40 - changed)]
        before = OutputError(ERRORS, 1.0, np.zeros(40))
        return is_better(before, OutputError(per_image, noise, predictions), significantly=False)

    assert trained(0.9, ERRORS)
    assert trained(0.9, ERRORS, changed=1)
    assert not trained(0.9, ERRORS, changed=6)
    assert not trained(0.9, ERRORS + 1)
    assert not trained(1.0, ERRORS * 0.5)
    assert not trained(np.inf, np.full(40, np.inf))


@pytest.mark.parametrize(
    ("methods", "best"),
    [
        ({"entropy": error(ERRORS * 0.9), "minmax": error(ERRORS * 1.1)}, "entropy"),
        ({"entropy": error(ERRORS * 0.9), "minmax": error(ERRORS * 0.8)}, "minmax"),
        ({"minmax": error(ERRORS)}, DEFAULT_METHOD),
        ({"minmax": error(ERRORS * 0.9, 0.2)}, DEFAULT_METHOD),
    ],
    ids=["better", "best of two", "equal", "better on most images only"],
)
def test_method_is_the_best_of_those_better_than_the_default(
    methods: dict[str, OutputError], best: str
) -> None:
    method, tried = best_method({DEFAULT_METHOD: error(ERRORS), **methods})
    assert method == best
    assert len(tried) == len(methods) + 1
    assert list(tried.values()) == sorted(tried.values())


def test_method_better_by_chance_is_not_selected() -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 40)
    better = ERRORS * np.exp(noise - noise.mean() - 0.05)
    assert better.mean() < ERRORS.mean()
    method, _ = best_method({DEFAULT_METHOD: error(ERRORS), "minmax": error(better)})
    assert method == DEFAULT_METHOD


def test_another_method_replaces_a_default_with_infinite_outputs() -> None:
    infinite = error(np.full(40, np.inf))
    method, _ = best_method({DEFAULT_METHOD: infinite, "minmax": error(ERRORS)})
    assert method == "minmax"


WIDE, NARROW = Range(-100.0, 100.0), Range(-1.0, 1.0)


def net(largest_counts: bool) -> ir.Model:
    """Return a network whose output is the largest value of a tensor, or all others."""
    after = "y = ReduceMax (a)" if largest_counts else "s = Clip (a, low, high) y = Relu (s)"
    limits = {"low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    text = f"{HEAD}net (float[N, 64] x) => (float[] y) {{ a = Identity (x) {after} }}"
    model = infer_shapes(from_text(text, **({} if largest_counts else limits)))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def batches() -> list[Tensors]:
    """Return images with values within 1, except one value near 100 in each."""
    random = np.random.default_rng(0)
    values = random.uniform(-1, 1, (3, 4, 64)).astype(np.float32)
    values[:, :, 0] = random.uniform(90, 100, (3, 4))
    return [{"x": batch} for batch in values]


def method_of(model: ir.Model, ranges: dict[str, Range]) -> str:
    by_method = {method: {"a": value_range} for method, value_range in ranges.items()}
    contested = contested_ranges(model, by_method)
    return dict(choose_methods(model, contested, batches(), Grid(8), "fp32"))["a"]


def test_range_is_not_cut_if_the_output_is_the_largest_value() -> None:
    assert method_of(net(largest_counts=True), {"cut": NARROW, "whole": WIDE}) == "whole"


def test_range_is_cut_if_the_output_ignores_the_largest_value() -> None:
    assert method_of(net(largest_counts=False), {"whole": WIDE, "cut": NARROW}) == "cut"


def test_default_stays_unless_another_method_is_clearly_better() -> None:
    similar = {"default": Range(-1.12, 1.12), "other": Range(-1.0, 1.0)}
    assert method_of(net(largest_counts=False), similar) == "default"


def test_tensors_with_the_same_range_from_all_methods_are_not_contested() -> None:
    same = {"default": {"a": WIDE}, "other": {"a": Range(-99.0, 100.0)}}
    assert contested_ranges(net(largest_counts=True), same) == {}
