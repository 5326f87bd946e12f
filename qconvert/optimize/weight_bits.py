"""Choose the weights that keep 8 bits in a plan with fewer: where a byte gains most accuracy.

The error of the outputs is measured with each weight alone rounded to few bits. The first layers and
depthwise filters have few weights and make most of it: the weights are sorted by error per number,
and from the front keep 8 bits, until the rest makes little error or the share is used up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core.cache import Cache, JsonCodec
from qconvert.core.progress import Progress, start_step
from qconvert.core.scales import fake_quantize
from qconvert.core.tensors import batch_size
from qconvert.graph import patterns
from qconvert.graph.describe import describe_model
from qconvert.measure.output_error import weighed_noise_to_signal
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import EFFORTS, Candidate, run_reference
from qconvert.optimize.partial_execution import PartialExecution, find_untyped_tensor, limit_images
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import find_planned_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan import Plan
from qconvert.quantize.weights import find_weighted_layers, weight_array, weight_qparams

KEPT_BITS = 8
# Of all weights so many keep 8 bits at most, and none once the others make this share of the error.
MAX_SHARE, LITTLE_ERROR = 0.06, 0.05
MAX_TRIAL_IMAGES = 32


@dataclass(frozen=True)
class WeightError:
    """How many numbers a weight has, and the error of the outputs if it alone has few bits."""

    size: int
    error: float


_ERRORS = JsonCodec("errors.json", dict[str, WeightError])


def keep_sensitive_weights(
    plan: Plan, candidate: Candidate, effort: str, cache: Cache
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan with 8 bits for the weights that need them most, and notes.

    A plan with 8 bits stays as it is, and so does one whose effort pays for no trials.
    """
    images = _count_images(plan, candidate, effort)
    if plan.weights.bits >= KEPT_BITS or not images:
        return plan, ()
    end = start_step(candidate.progress, "bits")
    key = {
        "name": "errors of weights",
        "plan": plan_files.format_plan(plan),
        "calibration": candidate.calibration.full.origin.fingerprint,
        "images": str(images),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
    }
    entry, hit = cache.get_or_make(
        "bits", key, lambda entry: _ERRORS.save(measure_errors(plan, candidate, images), entry)
    )
    errors = _ERRORS.load(entry)
    kept = choose_weights(errors)
    total = sum(row.size for row in errors.values())
    share = sum(errors[name].size for name in kept) / max(1, total)
    note = (
        f"{len(kept)} of {len(errors)} weights keep {KEPT_BITS} bits, {share:.1%} of all numbers: "
        f"rounded to {plan.weights.bits} bits they would make {_share(errors, kept):.0%} of the error"
    )
    end(note, hit)
    return _with_bits(plan, kept), (note,)


def choose_weights(errors: Mapping[str, WeightError]) -> list[str]:
    """Return the weights that keep 8 bits, those first that make most error per number."""
    budget = MAX_SHARE * sum(row.size for row in errors.values())
    kept = list[str]()
    for name in sorted(errors, key=lambda name: -errors[name].error / max(1, errors[name].size)):
        if _share(errors, kept) >= 1.0 - LITTLE_ERROR:
            break
        if errors[name].size <= budget:
            kept.append(name)
            budget -= errors[name].size
    return kept


def measure_errors(plan: Plan, candidate: Candidate, images: int) -> dict[str, WeightError]:
    """Return the errors of the weights by the names of their nodes, each rounded alone."""
    model = equalize(candidate.loaded.model, plan.equalized)
    batches = candidate.calibration.training_batches(limit_images(model, images))
    reference, counts = run_reference(model, batches), [batch_size(batch) for batch in batches]
    layers = list(find_weighted_layers(find_planned_layers(model.graph, plan), plan))
    run, errors = PartialExecution(model, open_cpu, batches), dict[str, WeightError]()
    for layer, qparams in zip(layers, weight_qparams(layers, plan), strict=True):
        name, weight = layer.node.name or "", weight_array(layer.weight, layer.node)
        run.run_to(name)
        patterns.set_constant(layer.weight, fake_quantize(weight, qparams))
        rounded = run.open_rest()
        patterns.set_constant(layer.weight, weight)
        outputs = [rounded(live) for live in run.live][: len(reference)]
        error = weighed_noise_to_signal(reference, outputs, counts[: len(reference)])
        errors[name] = WeightError(int(weight.size), float(error))
        candidate.progress(Progress("bits", "weights", done=len(errors), total=len(layers)))
    return errors


def _share(errors: Mapping[str, WeightError], names: Sequence[str]) -> float:
    total = sum(row.error for row in errors.values())
    return sum(errors[name].error for name in names) / total if total else 1.0


def _with_bits(plan: Plan, names: Sequence[str]) -> Plan:
    layers = dict(plan.layers)
    for name in names:
        weight = layers[name].weight
        assert weight is not None, "its error was measured"
        layers[name] = replace(layers[name], weight=replace(weight, bits=KEPT_BITS))
    return replace(plan, layers=layers)


def _count_images(plan: Plan, candidate: Candidate, effort: str) -> int:
    """Return on how many images the effort pays for a trial of each weight; 0 for too few."""
    model = candidate.loaded.model
    if candidate.calibration.images is None or find_untyped_tensor(model):
        return 0
    macs = sum(node.macs or 0 for node in describe_model(model).nodes)
    trials = sum(layer.weight is not None for layer in plan.layers.values())
    images = int(EFFORTS[effort].max_macs / max(1, macs * trials))
    return min(MAX_TRIAL_IMAGES, images) if images >= CALIBRATION_BATCH else 0
