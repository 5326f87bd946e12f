"""Learn the rounding of a plan's weights on calibration images, and accept it by the whole model.

Layers are learned one after another, each on the actual outputs of the quantized layers before it,
towards its float outputs. So a layer also compensates some of the errors that reach it, its bias
first of all. A layer keeps what it learned only if its error falls on batches held out from it; the
model keeps the weights only if `candidate.is_better` accepts them. Every layer is saved as soon as
it is learned, so that a run that was killed resumes there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.core.scales import FloatArray, QuantParams, dequantize
from qconvert.core.tensors import Tensors
from qconvert.graph import patterns
from qconvert.measure.output_error import OutputError, sqnr_from_powers
from qconvert.optimize import im2col
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import EFFORTS, Candidate, is_better, run_reference
from qconvert.optimize.coordinate_descent import (
    LayerProblem,
    Solution,
    find_activation,
    round_weights,
)
from qconvert.optimize.partial_execution import PartialExecution, find_untyped_tensor, limit_images
from qconvert.quantize import pairs, plan_files
from qconvert.quantize.apply_plan import apply_plan, find_planned_layers, set_weight
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan import BIAS_SLOT, Plan, RoundedWeight, WeightSlot
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.quantize.weights import (
    WeightedLayer,
    find_weighted_layers,
    quantize_weight,
    weight_array,
    weight_qparams,
)

# One batch of so many is held out from every layer.
HOLDOUT_EVERY = 4
# Bytes that the rows of one layer may take.
MAX_ROW_BYTES = 256_000_000


def learn_rounding(
    plan: Plan, candidate: Candidate, effort: str, cache: Cache
) -> tuple[PlanWithWeights, tuple[str, ...]]:
    """Return the plan with learned weights if they lower the output error, and notes."""
    level, model, calibration = EFFORTS[effort], candidate.loaded.model, candidate.calibration

    def skip(reason: str) -> tuple[PlanWithWeights, tuple[str, ...]]:
        return PlanWithWeights(plan), (f"weights are rounded to nearest: {reason}",)

    if not level.training_images or not find_learnable(model, plan):
        return PlanWithWeights(plan), ()
    if untyped := find_untyped_tensor(model):
        return skip(f"the type of `{untyped}` is unknown, so that no layer runs alone")
    if calibration.images is None:
        return skip("learning them needs the calibration images, `--images`")
    end = start_step(candidate.progress, "learn")
    images = limit_images(model, level.training_images)
    if not calibration.has_holdout:
        # Of few images some must be left for validation.
        images = min(images, calibration.validation_count - CALIBRATION_BATCH)
    batches = calibration.training_batches(images) if images > 0 else []
    holdout = partial(calibration.holdout_batches, images, level.holdout_images)
    if len(batches) < 2 or next(holdout(), None) is None:
        return skip(
            f"learning them needs more calibration images than {calibration.validation_count}, "
            "some to train on and others to validate"
        )
    key = {
        "name": f"rounding, effort {effort}",
        "plan": plan_files.format_plan(plan),
        "calibration": calibration.full.origin.fingerprint,
        "effort": f"{effort} {level}",
        "qconvert": __version__,
        "numpy": np.__version__,
        "onnxruntime": ORT_VERSION,
    }

    def make(entry: Path) -> None:
        with cache.resumable("learn", key) as folder:
            layers = _learn_resumably(model, plan, batches, level.rows, folder, candidate.progress)
            weights = {name: weight for name, weight in layers.items() if weight is not None}
            learned = replace(plan, learned=plan_files.weights_digest(weights))
            before, after = PlanWithWeights(plan), PlanWithWeights(learned, weights)
            accepted, decision = accept_plan(candidate, before, after, list(holdout()))
        note = f"learned rounding: {len(layers)} layers, {decision}"
        plan_files.save_plan(after if accepted else before, entry / "plan.json")
        (entry / "summary.txt").write_text(note, encoding="utf-8")

    entry, hit = cache.get_or_make("learn", key, make)
    note = (entry / "summary.txt").read_text(encoding="utf-8")
    end(note, hit)
    return plan_files.load_plan(entry / "plan.json"), (note,)


def accept_plan(
    candidate: Candidate, before: PlanWithWeights, after: PlanWithWeights, batches: list[Tensors]
) -> tuple[bool, str]:
    """Return whether the outputs of a changed plan are nearer to FP32, and the figures."""
    model = candidate.loaded.model
    reference = run_reference(model, batches)
    errors = [
        candidate.compare(apply_plan(model, row.plan, row.weights), batches, reference)
        for row in (before, after)
    ]
    accepted = is_better(*errors, significantly=False)
    return accepted, describe_decision(accepted, *errors)


def describe_decision(accepted: bool, before: OutputError, after: OutputError) -> str:
    """Return whether learned weights are used, with the figures that decided."""
    used = "used" if accepted else "not used"
    if before.of_boxes:
        errors = f"{before.per_image.mean():.3g} -> {after.per_image.mean():.3g}"
        return f"{used} ({before.name} {errors} on {after.per_image.size} images)"
    decibels = [sqnr_from_powers(1.0, error.noise_to_signal) for error in (before, after)]
    figures = f"validation SQNR {decibels[0]:.1f} -> {decibels[1]:.1f} dB"
    if not accepted and after.noise_to_signal < before.noise_to_signal:
        figures += (
            f", but output error {before.per_image.mean():.3g} -> {after.per_image.mean():.3g} and "
            f"{before.changed.mean():.1%} -> {after.changed.mean():.1%} changed predictions"
        )
    return f"{used} ({figures} on {after.per_image.size} images)"


def _learn_resumably(
    model: ir.Model,
    plan: Plan,
    batches: Sequence[Tensors],
    max_rows: int,
    folder: Path,
    progress: ProgressCallback,
) -> dict[str, RoundedWeight | None]:
    """Learn the layers that are not in the folder, and save each there as soon as it is learned."""
    names = find_learnable(model, plan)
    files = {name: folder / f"{number}.npz" for number, name in enumerate(names)}
    finished = {
        name: plan_files.load_weights(file).get(name)
        for name, file in files.items()
        if file.is_file()
    }
    layers: dict[str, RoundedWeight | None] = {}
    for name, weight in learn_layers(model, plan, batches, max_rows, finished):
        if name not in finished:
            plan_files.save_weights({name: weight} if weight is not None else {}, files[name])
        layers[name] = weight
        progress(Progress("learn", "layers", done=len(layers), total=len(names)))
    return layers


def find_learnable(model: ir.Model, plan: Plan) -> list[str]:
    """Return the names of the nodes whose weights can be learned, in the order of the graph."""
    layers = find_weighted_layers(find_planned_layers(model.graph, plan), plan)
    return [layer.node.name or "" for layer in layers if _can_learn(layer)]


def learn_layers(
    model: ir.Model,
    plan: Plan,
    batches: Sequence[Tensors],
    max_rows: int,
    finished: Mapping[str, RoundedWeight | None],
) -> Iterator[tuple[str, RoundedWeight | None]]:
    """Yield each layer with the weight learned from `max_rows` rows, None if none is better.

    `finished` layers were learned before.
    """
    open_model = partial(open_cpu, keep_qdq=True)
    equalized = equalize(model, plan.equalized)
    layers = list(find_weighted_layers(find_planned_layers(equalized.graph, plan), plan))
    float_run = PartialExecution(equalized, open_model, batches)
    # The activations are quantized; the layers get their weights on the way.
    unweighted = {name: replace(layer, weight=None) for name, layer in plan.layers.items()}
    activations = replace(plan, layers=unweighted, integer_bias=False, learned="")
    quantized = apply_plan(model, activations, keep_values=True)
    nodes = {node.name: node for node in quantized.graph}
    names = patterns.UniqueNames(patterns.tensor_names(quantized.graph))
    quantized_run = PartialExecution(quantized, open_model, batches)
    for number, (layer, scale) in enumerate(zip(layers, weight_qparams(layers, plan), strict=True)):
        name = layer.node.name or ""
        node, learned = nodes[name], finished.get(name)
        if _can_learn(layer):
            # Finished layers are run to as well: a runtime computes a longer segment differently.
            output, source = str(layer.node.outputs[0].name), node.inputs[0]
            float_run.run_to(name, output, inclusive=True)
            assert source is not None
            quantized_run.run_to(name, str(source.name))
            if name not in finished:
                inputs = [batch[str(source.name)] for batch in quantized_run.live]
                targets = [batch[output] for batch in float_run.live]
                generator = np.random.default_rng([0, number])
                learned = _learn_layer(layer, scale, inputs, targets, max_rows, generator)
            yield name, learned
        weight = node.inputs[layer.slot]
        if learned is not None:
            slot = WeightSlot(layer.slot, layer.axis)
            set_weight(node, slot, learned, names)
        elif weight is not None:
            integers = quantize_weight(weight_array(layer.weight, layer.node), scale, layer.paired)
            patterns.set_constant(weight, dequantize(integers.astype(np.int32), scale))


def _can_learn(layer: WeightedLayer) -> bool:
    """Whether a weight has no other reader, and its bias, if there is one, is constant."""
    no_bias = len(layer.node.inputs) <= BIAS_SLOT or layer.node.inputs[BIAS_SLOT] is None
    return len(list(layer.weight.uses())) == 1 and (no_bias or layer.bias is not None)


def _learn_layer(
    layer: WeightedLayer,
    scale: QuantParams,
    inputs: Sequence[FloatArray],
    targets: Sequence[FloatArray],
    max_rows: int,
    generator: np.random.Generator,
) -> RoundedWeight | None:
    """Solve the layer on most of the batches; keep the solution if it is better on the others."""
    node = layer.node
    weight = weight_array(layer.weight, node)
    matrix = im2col.weight_matrix(node, weight).astype(np.float32)
    groups, units, size = matrix.shape
    # What an Add behind a MatMul adds is its bias.
    add, constant_bias = patterns.find_matmul_bias(node)
    constant = patterns.constant_array(constant_bias)
    added = None if constant is None else constant.astype(np.float32)
    bias = layer.bias if added is None else added
    if bias is None and node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        bias = np.zeros(groups * units, np.float32)
    # Rows are random positions in the output of each image, the same number each.
    max_rows = min(max_rows, MAX_ROW_BYTES // (4 * groups * size))
    available = im2col.count_rows(node, targets[0])
    count = min(available, max(1, max_rows // sum(map(len, targets))))
    rows, outputs = [], []
    for batch, target in zip(inputs, targets, strict=True):
        line = np.stack([generator.permutation(available)[:count] for _ in target])
        rows.append(im2col.gather_inputs(node, batch, target, line))
        output = im2col.gather_outputs(node, target, line)
        outputs.append(output if added is None else output + added[:, np.newaxis])
    holdout = range(HOLDOUT_EVERY - 1, len(rows), HOLDOUT_EVERY) or [len(rows) - 1]
    training = [batch for batch in range(len(rows)) if batch not in holdout]
    problem, validation = (
        LayerProblem(
            rows=np.concatenate([rows[batch] for batch in batches], axis=1),
            targets=np.concatenate([outputs[batch] for batch in batches], axis=2),
            weights=matrix,
            steps=im2col.per_output(node, scale.scale, units),
            biases=None if bias is None else im2col.per_output(node, bias, units),
            activation=find_activation(add or node),
            max_integer=scale.grid.symmetric_max,
            pair_channels=None
            if layer.paired is None
            else pairs.input_channels(layer.paired, weight.shape),
        )
        for batches in (training, holdout)
    )
    unchanged = Solution(problem.nearest, problem.biases)
    solutions = (unchanged, *round_weights(problem))
    best = min(solutions, key=lambda row: validation.relative_error(row.integers, row.biases))
    if best is unchanged:
        return None
    integers = im2col.restore_weight(node, best.integers, weight.shape).astype(np.int8)
    learned_bias = None if best.biases is None else best.biases.reshape(-1).astype(np.float32)
    return RoundedWeight(integers, scale.scale, learned_bias)
