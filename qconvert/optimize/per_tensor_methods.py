"""Choose a range method for every tensor: the one whose quantization moves the outputs least.

Each tensor is quantized alone, in the range of one method after another, and the float model runs
on from there to its outputs. The error of the tensor itself would not tell: a few large values may
be all that the layers behind it use, or nothing to them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.progress import Progress, start_step
from qconvert.core.scales import Grid, Range, choose_qparams, fake_quantize
from qconvert.core.tensors import Tensors
from qconvert.graph.describe import describe_model
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import MAX_TRAINING_IMAGES, Candidate
from qconvert.optimize.efforts import limit_images
from qconvert.optimize.partial_execution import PartialExecution, find_untyped_tensor
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.ranges import DEFAULT_METHOD, choose_ranges

# The methods for single tensors, the default first. Tighter percentiles overfit the few images.
TENSOR_METHODS = (
    DEFAULT_METHOD,
    "minmax",
    "percentile:99.999",
    "percentile:99.99",
    "percentile:99.9",
)
# Another method must bring the error down to this share of that of the default.
MAX_ERROR_RATIO = 0.8
# Ranges that differ by less than this share are the same range.
RANGE_TOLERANCE = 0.05

RangesByMethod = Mapping[str, Mapping[str, Range]]


def assign_methods(candidate: Candidate, max_macs: float) -> QuantizeOptions:
    """Return the options with another method for each tensor that it suits better.

    At most `max_macs` multiplications are done; where they do not pay for a batch of images, the
    options stay as they are.
    """
    model, grid, options = candidate.loaded.model, candidate.scheme.activations, candidate.options
    observed = find_observed_tensors(model)
    summaries = candidate.calibration.training.summaries
    quantized = candidate.trial_plan(options).tensors.keys() - observed.aliases.keys()
    ranges: dict[str, dict[str, Range]] = {}
    for method in TENSOR_METHODS:
        chosen = choose_ranges(model.graph, observed, summaries, grid, method)
        ranges[method] = {name: chosen[name] for name in chosen if name in quantized}
    total = len(contested_tensors(model, ranges))
    batches = _affordable_batches(candidate, total, max_macs)
    if not total or not batches or find_untyped_tensor(model):
        return options
    end = start_step(candidate.progress, "ranges")
    # These images never take part in the test of acceptance.
    training = candidate.calibration.training_batches(MAX_TRAINING_IMAGES)[:batches]
    methods: dict[str, str] = {}
    choices = choose_methods(model, ranges, training, grid, options.rest)
    for done, (name, method) in enumerate(choices, 1):
        if method != options.method:
            methods[name] = method
        candidate.progress(Progress("ranges", "tensors", done=done, total=total))
    end(f"{len(methods)} of {total} tensors take another range method than {DEFAULT_METHOD}", False)
    return replace(options, per_tensor_methods=methods)


def choose_methods(
    model: ir.Model,
    ranges: RangesByMethod,
    batches: Sequence[Tensors],
    grid: Grid,
    rest: RestPrecision,
) -> Iterator[tuple[str, str]]:
    """Yield each tensor with its method; `ranges` has those of every method, the default first.

    Tensors that get about the same range from all methods are left out.
    """
    default = next(iter(ranges))
    execution = PartialExecution(model, open_cpu, batches)
    run = open_cpu(model)
    references = [run(batch) for batch in batches]
    for value in contested_tensors(model, ranges):
        name, producer = str(value.name), value.producer()
        if producer is not None:
            execution.run_to(str(producer.name), name, inclusive=True)
        run_rest = execution.open_rest()
        candidates = _distinct_ranges(ranges, name)
        errors = dict.fromkeys(candidates, 0.0)
        for live, reference in zip(execution.live, references, strict=True):
            for method, candidate in candidates.items():
                qparams = choose_qparams(candidate, grid, rest)
                quantized = {**live, name: fake_quantize(np.asarray(live[name]), qparams)}
                outputs = {**live, **run_rest(quantized)}
                errors[method] += _relative_squared_error(reference, outputs)
        best = min(errors, key=lambda method: errors[method])
        yield name, best if errors[best] < MAX_ERROR_RATIO * errors[default] else default


def contested_tensors(model: ir.Model, ranges: RangesByMethod) -> list[ir.Value]:
    """Return the tensors about whose range the methods differ, in the order of the graph."""
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    return [
        value
        for value in values
        if value.uses()
        and all(value.name in by_tensor for by_tensor in ranges.values())
        and len(_distinct_ranges(ranges, str(value.name))) > 1
    ]


def _distinct_ranges(ranges: RangesByMethod, tensor: str) -> dict[str, Range]:
    """Return the ranges of a tensor that differ from those of all methods before."""
    distinct: dict[str, Range] = {}
    for method, by_tensor in ranges.items():
        if not any(_are_similar(by_tensor[tensor], other) for other in distinct.values()):
            distinct[method] = by_tensor[tensor]
    return distinct


def _are_similar(a: Range, b: Range) -> bool:
    tolerance = RANGE_TOLERANCE * max(a.high - a.low, b.high - b.low)
    return abs(a.low - b.low) <= tolerance and abs(a.high - b.high) <= tolerance


def _relative_squared_error(reference: Tensors, outputs: Tensors) -> float:
    """Return the squared error of the real outputs, each as a share of its power."""
    total = 0.0
    for name, output in reference.items():
        a, b = np.asarray(output), np.asarray(outputs[name])
        if a.dtype.kind != "f":
            continue
        if a.shape != b.shape:
            return np.inf
        error = np.square(a.astype(np.float64) - b).sum()
        total += float(error / (np.square(a.astype(np.float64)).sum() or 1.0))
    return total if np.isfinite(total) else np.inf


def _affordable_batches(candidate: Candidate, tensors: int, max_macs: float) -> int:
    """Return how many batches the work and the memory allow."""
    model = candidate.loaded.model
    macs = sum(node.macs or 0 for node in describe_model(model).nodes)
    # For each tensor and method, on average half of the model runs.
    macs_per_image = max(1, macs * tensors * len(TENSOR_METHODS) / 2)
    images = min(limit_images(model, MAX_TRAINING_IMAGES), max_macs / macs_per_image)
    return int(images // CALIBRATION_BATCH)
