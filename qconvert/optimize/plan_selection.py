"""Select the plan of a candidate: the range method with the least output error on holdout images.

The differences are small and the images few, so another method replaces the default only if it is
better by more than chance (`candidate.is_better`).

One of the candidates chooses a method for every tensor: each tensor is quantized alone, in the
range of one method after another, and the float model runs on from there to its outputs. The error
of the tensor itself is not enough: a few large values may decide the outputs of the next layers, or
not matter to them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.progress import Progress, start_step
from qconvert.core.scales import Grid, Range, choose_qparams, fake_quantize
from qconvert.core.tensors import Tensors
from qconvert.graph.describe import describe_model
from qconvert.graph.patterns import computed_values
from qconvert.graph.taps import find_observed_tensors
from qconvert.measure.output_error import (
    OutputError,
    has_dense_output,
    noise_to_signal,
    weighed_noise_to_signal,
)
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import (
    EFFORTS,
    MAX_TRAINING_IMAGES,
    Candidate,
    is_better,
    run_reference,
)
from qconvert.optimize.partial_execution import PartialExecution, find_untyped_tensor, limit_images
from qconvert.quantize.placement import (
    AUTO_METHOD,
    DEFAULT_METHOD,
    OUTPUT_ERROR_METHOD,
    QuantizeOptions,
    choose_ranges,
    make_plan,
)
from qconvert.quantize.plan import Plan, RestPrecision

PERCENTILES = ("percentile:99.999", "percentile:99.99")
CANDIDATE_METHODS = (DEFAULT_METHOD, "minmax", *PERCENTILES, "entropy", "moving-average")
# The methods for single tensors, the default first. Tighter percentiles overfit the few images.
TENSOR_METHODS = (DEFAULT_METHOD, "minmax", *PERCENTILES, "percentile:99.9")
# Another method must bring the error of a tensor down to this share of that of the default.
MAX_ERROR_RATIO = 0.8

# For each tensor the ranges that it may get, by method, the default first.
ContestedRanges = Mapping[ir.Value, Mapping[str, Range]]


def initial_options(options: QuantizeOptions) -> QuantizeOptions:
    """Return the options to start from: where the method is still to be selected, the default."""
    if options.method in (AUTO_METHOD, OUTPUT_ERROR_METHOD):
        return replace(options, method=DEFAULT_METHOD)
    return options


def select_plan(
    original: Candidate, candidate: Candidate, method: str, effort: str
) -> tuple[Plan, dict[str, float]]:
    """Return the plan for the original model by this method, and the output error of all tried.

    The method may ask for the best one, or one for each tensor. The plan has the factors.
    """
    options, tried = candidate.options, dict[str, float]()
    if candidate.calibration.images is not None:
        if method == AUTO_METHOD:
            options, tried = _select_method(candidate, EFFORTS[effort].max_macs)
        elif method == OUTPUT_ERROR_METHOD:
            options = assign_methods(candidate, EFFORTS["thorough"].max_macs)
    model, summaries = candidate.loaded.model, candidate.calibration.full.summaries
    plan = make_plan(model, candidate.scheme, summaries, options, candidate.precision)
    if candidate.factors:
        fingerprint = onnx_io.fingerprint(original.loaded.model)
        plan = replace(plan, model=fingerprint, equalized=dict(candidate.factors))
    return plan, tried


def _select_method(
    candidate: Candidate, max_macs: float
) -> tuple[QuantizeOptions, dict[str, float]]:
    """Quantize with every method; return the options with the best, and the errors of all."""
    end = start_step(candidate.progress, "choose")
    methods = (*CANDIDATE_METHODS, OUTPUT_ERROR_METHOD)
    total = len(methods) + 1
    candidate.progress(Progress("choose", "the float model", done=0, total=total))
    reference = run_reference(candidate.loaded.model, candidate.holdout_batches())
    errors: dict[str, OutputError] = {}
    options: dict[str, QuantizeOptions] = {}
    for number, method in enumerate(methods, 1):
        candidate.progress(Progress("choose", method, done=number, total=total))
        options[method] = replace(candidate.options, method=method)
        if method == OUTPUT_ERROR_METHOD:
            options[method] = assign_methods(candidate, max_macs)
            if not options[method].per_tensor_methods:
                break
        errors[method] = candidate.output_error(options[method], reference)
    best, tried = best_method(errors)
    scores = ", ".join(f"{method} {distance:.4g}" for method, distance in tried.items())
    default = errors[DEFAULT_METHOD]
    images = candidate.describe_images(default)
    end(f"ranges by {best}; {default.name} {images}: {scores}", False)
    return options[best], tried


def best_method(errors: Mapping[str, OutputError]) -> tuple[str, dict[str, float]]:
    """Return the best method that is better than the default, or that; and the errors, ascending."""
    means = {method: float(error.per_image.mean()) for method, error in errors.items()}
    ranked = dict(sorted(means.items(), key=lambda item: item[1]))
    better = (method for method in ranked if is_better(errors[DEFAULT_METHOD], errors[method]))
    return next(better, DEFAULT_METHOD), ranked


def assign_methods(candidate: Candidate, max_macs: float) -> QuantizeOptions:
    """Return the options with a better range method for each tensor that has one.

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
    contested = contested_ranges(model, ranges)
    # For each tensor and method, on average half of the model runs.
    macs = sum(node.macs or 0 for node in describe_model(model).nodes)
    macs_per_image = max(1, macs * len(contested) * len(TENSOR_METHODS) / 2)
    images = min(limit_images(model, MAX_TRAINING_IMAGES), max_macs / macs_per_image)
    batches = int(images // CALIBRATION_BATCH)
    if not contested or not batches or find_untyped_tensor(model):
        return options
    end = start_step(candidate.progress, "ranges")
    # These images never take part in the test of acceptance.
    training = candidate.calibration.training_batches(MAX_TRAINING_IMAGES)[:batches]
    methods: dict[str, str] = {}
    total, choices = len(contested), choose_methods(model, contested, training, grid, options.rest)
    for done, (name, method) in enumerate(choices, 1):
        if method != options.method:
            methods[name] = method
        candidate.progress(Progress("ranges", "tensors", done=done, total=total))
    end(f"{len(methods)} of {total} tensors take another range method than {DEFAULT_METHOD}", False)
    return replace(options, per_tensor_methods=methods)


def choose_methods(
    model: ir.Model,
    contested: ContestedRanges,
    batches: Sequence[Tensors],
    grid: Grid,
    rest: RestPrecision,
) -> Iterator[tuple[str, str]]:
    """Yield each contested tensor, in the order of the graph, with the method of its range."""
    execution = PartialExecution(model, open_cpu, batches)
    run = open_cpu(model)
    references = [run(batch) for batch in batches]
    for value, ranges in contested.items():
        name, producer = str(value.name), value.producer()
        if producer is not None:
            execution.run_to(str(producer.name), name, inclusive=True)
        run_rest = execution.open_rest()
        errors = dict.fromkeys(ranges, 0.0)
        for live, reference in zip(execution.live, references, strict=True):
            for method, value_range in ranges.items():
                qparams = choose_qparams(value_range, grid, rest)
                quantized = {**live, name: fake_quantize(np.asarray(live[name]), qparams)}
                outputs = {**live, **run_rest(quantized)}
                errors[method] += _sum_of_errors(reference, outputs)
        default, best = next(iter(errors)), min(errors, key=lambda method: errors[method])
        yield name, best if errors[best] < MAX_ERROR_RATIO * errors[default] else default


def _sum_of_errors(reference: Tensors, outputs: Tensors) -> float:
    """Return the noise-to-signal ratios of all outputs of a batch; of dense ones by channel."""
    if has_dense_output(reference):
        return weighed_noise_to_signal([reference], [outputs])
    return sum(
        noise_to_signal([{output: array}], [{output: outputs[output]}])
        for output, array in reference.items()
    )


def contested_ranges(
    model: ir.Model, ranges: Mapping[str, Mapping[str, Range]]
) -> dict[ir.Value, dict[str, Range]]:
    """Return the tensors about which the methods differ, in the order of the graph.

    `ranges` has those of all tensors by method. Of each tensor, the first range is returned, and
    those that differ by 5 % from all before.
    """
    contested: dict[ir.Value, dict[str, Range]] = {}
    for value in (*model.graph.inputs, *computed_values(model.graph)):
        name = str(value.name)
        if not value.uses() or any(name not in by_tensor for by_tensor in ranges.values()):
            continue
        distinct: dict[str, Range] = {}
        for method, by_tensor in ranges.items():
            new = by_tensor[name]
            if all(
                max(abs(new.low - old.low), abs(new.high - old.high))
                > 0.05 * max(new.high - new.low, old.high - old.low)
                for old in distinct.values()
            ):
                distinct[method] = new
        if len(distinct) > 1:
            contested[value] = distinct
    return contested
