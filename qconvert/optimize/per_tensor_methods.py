"""For every tensor the range method whose rounding moves the answers of the model least.

Each tensor is rounded alone, in the range of one method after another, and the float model runs on
from there. What a range does to its own tensor does not tell: a few large values may be all that
the layers behind care for, or nothing to them.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.progress import Progress
from qconvert.core.scales import Grid, Range, choose_qparams, fake_quantize
from qconvert.core.tensors import RunModel, Tensors
from qconvert.graph.describe import describe_model
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import MAX_TRAINING_IMAGES, Candidate
from qconvert.optimize.efforts import limit_images
from qconvert.optimize.partial_execution import OpenModel, PartialExecution, find_untyped_tensor
from qconvert.quantize import ranges
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.ranges import DEFAULT_METHOD, RangeOptions

# Another method must bring the error down to this share of that of the usual one.
MAX_ERROR_RATIO = 0.8
# Ranges that differ by less are the same range.
RANGE_TOLERANCE = 0.05


@dataclass(frozen=True)
class QuantizerSpec:
    """How a tensor is rounded within a range."""

    grid: Grid
    rest: RestPrecision


@dataclass(frozen=True)
class ProbeSet:
    """Images in parts that the model takes as a batch, and what opens a model."""

    batches: Sequence[Tensors]
    open_model: OpenModel


def choose_methods(
    model: ir.Model,
    ranges: Mapping[str, Mapping[str, Range]],
    rounding: QuantizerSpec,
    trial: ProbeSet,
) -> Iterator[tuple[str, str]]:
    """Yield each tensor with its method; `ranges` has those of every method, the usual one first.

    Tensors that all methods give about the same range are left out.
    """
    usual = next(iter(ranges))
    walk = PartialExecution(model, trial.open_model, trial.batches)
    run = trial.open_model(model)
    wanted = [run(part) for part in trial.batches]
    for value in contested_tensors(model, ranges):
        name = str(value.name)
        producer = value.producer()
        if producer is not None:
            walk.run_to(str(producer.name), name, beyond=True)
        rest = walk.open_rest()
        alike = _distinct_ranges({method: each[name] for method, each in ranges.items()})
        errors = _errors_by_method(name, alike, rounding, _Resume(walk.live, rest, wanted))
        best = min(errors, key=lambda method: errors[method])
        yield name, best if errors[best] < MAX_ERROR_RATIO * errors[usual] else usual


def contested_tensors(model: ir.Model, ranges: Mapping[str, Mapping[str, Range]]) -> list[ir.Value]:
    """Return the tensors about whose range the methods differ, in the order of the graph."""
    made = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    named = [value for value in made if all(value.name in each for each in ranges.values())]
    return [
        value
        for value in named
        if value.uses()
        and len(
            _distinct_ranges({method: each[str(value.name)] for method, each in ranges.items()})
        )
        > 1
    ]


@dataclass(frozen=True)
class _Resume:
    """What is there of each part, what runs on from there, and what it should answer."""

    held: Sequence[Tensors]
    rest: RunModel
    wanted: Sequence[Tensors]


def _distinct_ranges(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return the ranges that differ from all before them."""
    found: dict[str, Range] = {}
    for method, each in ranges.items():
        if not any(_are_similar(each, other) for other in found.values()):
            found[method] = each
    return found


def _are_similar(a: Range, b: Range) -> bool:
    most = RANGE_TOLERANCE * max(a.high - a.low, b.high - b.low)
    return abs(a.low - b.low) <= most and abs(a.high - b.high) <= most


def _errors_by_method(
    name: str, ranges: Mapping[str, Range], rounding: QuantizerSpec, start: _Resume
) -> dict[str, float]:
    """Return the error of the answers for each range, over all parts."""
    errors = dict.fromkeys(ranges, 0.0)
    for part, wanted in zip(start.held, start.wanted, strict=True):
        for method, each in ranges.items():
            scale = choose_qparams(each, rounding.grid, rounding.rest)
            got = start.rest({**part, name: fake_quantize(np.asarray(part[name]), scale)})
            errors[method] += _squared_error(wanted, {**part, **got})
    return errors


def _squared_error(wanted: Tensors, got: Tensors) -> float:
    """Return the squared error of the real answers, each as a share of its power."""
    error = 0.0
    for name, answer in wanted.items():
        a, b = np.asarray(answer), np.asarray(got[name])
        if a.dtype.kind != "f":
            continue
        if a.shape != b.shape:
            return np.inf
        off = np.square(a.astype(np.float64) - b).sum()
        error += float(off / (np.square(a.astype(np.float64)).sum() or 1.0))
    return error if np.isfinite(error) else np.inf


# What single tensors can be given. Tighter percentiles fit the few images, and no others.
TENSOR_METHODS = (
    DEFAULT_METHOD,
    "minmax",
    "percentile:99.999",
    "percentile:99.99",
    "percentile:99.9",
)
RANGES_STEP = "ranges"


def assign_methods(study: Candidate, work: float) -> QuantizeOptions:
    """Return the wishes with a method of its own for each tensor that another one suits better.

    At most `work` multiplications are done; where they are not enough for a batch of images, the
    wishes stay as they are.
    """
    model, grid = study.loaded.model, study.scheme.activations
    observed = find_observed_tensors(model)
    summaries = study.calibration.training.summaries
    found = {
        method: ranges.choose_ranges(model.graph, observed, summaries, RangeOptions(method, grid))
        for method in TENSOR_METHODS
    }
    rounded = study.trial_plan(study.options).tensors.keys() - observed.aliases.keys()
    own = {
        method: {name: each for name, each in some.items() if name in rounded}
        for method, some in found.items()
    }
    total = len(contested_tensors(model, own))
    images = _affordable_images(study, total, work)
    if not total or not images or find_untyped_tensor(model):
        return study.options
    started = time.perf_counter()
    # All are taken from those that never judge.
    trial = ProbeSet(
        study.calibration.training_batches(MAX_TRAINING_IMAGES)[: images // CALIBRATION_BATCH],
        open_cpu,
    )
    rounding = QuantizerSpec(grid, study.options.rest)
    apart: dict[str, str] = {}
    for done, (name, method) in enumerate(choose_methods(model, own, rounding, trial)):
        if method != study.options.method:
            apart[name] = method
        study.progress(Progress(RANGES_STEP, "tensors", done=done + 1, total=total))
    text = f"{len(apart)} of {total} tensors rounded by another method than {DEFAULT_METHOD}"
    study.progress(Progress(RANGES_STEP, text, time.perf_counter() - started))
    return replace(study.options, per_tensor_methods=apart)


def _affordable_images(study: Candidate, tensors: int, work: float) -> int:
    """Return for how many images work and memory are enough, in whole batches."""
    once = sum(node.macs or 0 for node in describe_model(study.loaded.model).nodes)
    # On average half of the model runs for each of them.
    each = max(1, once * tensors * len(TENSOR_METHODS) / 2)
    most = min(limit_images(study.loaded.model, MAX_TRAINING_IMAGES), work / each)
    return math.floor(most / CALIBRATION_BATCH) * CALIBRATION_BATCH
