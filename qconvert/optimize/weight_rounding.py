"""Round the weights of a weight-only plan on calibration images, and accept them by the outputs.

As in `learned_rounding`, products are rounded one after another, each on the actual inputs that the
rounded ones before it compute, towards its float outputs, so that it also makes up for some of
their errors, its bias first of all. A layer keeps GPTQ's integers only if the error of its outputs
falls on batches held out from it; the model keeps them only if `candidate.is_better` accepts them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.core.scales import FloatArray
from qconvert.core.tensors import Tensors
from qconvert.graph import patterns
from qconvert.measure.output_error import OutputError
from qconvert.optimize import im2col
from qconvert.optimize.activation_scales import choose_activation_scales
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, CalibrationSet
from qconvert.optimize.candidate import EFFORTS, compare_outputs, is_better, run_reference
from qconvert.optimize.coordinate_descent import Activation, find_activation
from qconvert.optimize.learned_rounding import describe_decision
from qconvert.optimize.partial_execution import PartialExecution, find_untyped_tensor, limit_images
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import find_planned_layers, set_bias
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.grouped_rounding import RoundingProblem, round_gptq
from qconvert.quantize.grouped_weights import GroupedWeight
from qconvert.quantize.plan import BIAS_SLOT, LayerPlan, Plan, RoundedWeight
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.quantize.weight_only import PRODUCTS
from qconvert.quantize.weight_only_graph import (
    layer_format,
    pack_learned,
    restore_rows,
    round_layer,
    weight_rows,
)
from qconvert.quantize.weights import weight_array
from qconvert.sources import LoadedModel

# One batch of so many is held out from every layer.
HOLDOUT_EVERY = 4
# The sums of GPTQ need more rows than rounding up or down: some for each input of a layer.
ROWS = {"quick": 2048, "default": 8192, "thorough": 32768}
# Bytes that the rows of one layer may take.
MAX_ROW_BYTES = 256_000_000
# How much of the error of a layer's inputs its weights make up for: all of it would fit the
# training images and no others.
COMPENSATION = 0.25


def round_on_images(
    plan: Plan,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    effort: str,
    progress: ProgressCallback,
) -> tuple[PlanWithWeights, tuple[str, ...]]:
    """Return the plan with weights rounded by GPTQ if they lower the output error, and notes."""
    level, model = EFFORTS[effort], loaded.model

    def skip(reason: str) -> tuple[PlanWithWeights, tuple[str, ...]]:
        return PlanWithWeights(plan), (f"weights are rounded to nearest: {reason}",)

    if not level.training_images:
        return PlanWithWeights(plan), ()
    if calibration.images is None:
        return skip("GPTQ needs the calibration images, `--images`")
    if untyped := find_untyped_tensor(model):
        return skip(f"the type of `{untyped}` is unknown, so that no layer runs alone")
    images = limit_images(model, level.training_images)
    if not calibration.has_holdout:
        images = min(images, calibration.validation_count - CALIBRATION_BATCH)
    batches = calibration.training_batches(images) if images > 0 else []
    holdout = partial(calibration.holdout_batches, images, level.holdout_images)
    if len(batches) < 2 or next(holdout(), None) is None:
        return skip(
            f"GPTQ needs more calibration images than {calibration.validation_count}, "
            "some to round on and others to validate"
        )
    end = start_step(progress, "learn")
    reference = run_reference(model, holdout())

    def report(done: int, total: int) -> None:
        progress(Progress("learn", "layers", done=done, total=total))

    def error_of(candidate: Plan, layers: Mapping[str, RoundedLayer]) -> OutputError:
        rounded = with_rounded(candidate, model, layers)
        return compare_outputs(loaded, rounded, holdout(), reference)

    before = error_of(plan, round_layers(plan, model))
    learned = round_layers(plan, model, batches, ROWS[effort], report)
    after = error_of(plan, learned)
    accepted = is_better(before, after, significantly=False)
    count = sum(layer.is_learned for layer in learned.values())
    decision = describe_decision(accepted, before, after)
    notes = [f"GPTQ: {count} of {len(learned)} weights, {decision}"]
    best, weights, least = plan, learned if accepted else {}, after if accepted else before
    if level.equalize and (factors := choose_activation_scales(plan, model, batches, ROWS[effort])):
        scaled = replace(plan, equalized=factors)
        learned = round_layers(scaled, model, batches, ROWS[effort], report)
        after = error_of(scaled, learned)
        accepted = is_better(least, after, significantly=False)
        decision = describe_decision(accepted, least, after)
        notes.append(f"AWQ: factors for {len(factors)} tensors, {decision}")
        if accepted:
            best, weights = scaled, learned
    end("; ".join(notes), False)
    saved = {name: layer.packed() for name, layer in weights.items() if layer.is_product}
    digest = plan_files.weights_digest(saved)
    return PlanWithWeights(replace(best, learned=digest), saved), tuple(notes)


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """The integers of a weight, and the bias that goes with them, None if it stays as it is."""

    weight: GroupedWeight
    bias: FloatArray | None = None
    is_product: bool = False
    is_learned: bool = False

    def packed(self) -> RoundedWeight:
        """Return the weight as it is stored beside a plan."""
        return pack_learned(self.weight, self.bias)


def with_rounded(plan: Plan, model: ir.Model, layers: Mapping[str, RoundedLayer]) -> ir.Model:
    """Return a copy of a float model with the values that the integers of a plan stand for."""
    model = equalize(model, plan.equalized)
    names = patterns.UniqueNames(patterns.tensor_names(model.graph))
    for node, layer in find_planned_layers(model.graph, plan).items():
        _set_layer(node, layer, layers[node.name or ""], names)
    return model


def round_layers(
    plan: Plan,
    model: ir.Model,
    batches: Sequence[Tensors] = (),
    max_rows: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, RoundedLayer]:
    """Return the weights of a plan in the order of the graph, products rounded on these batches.

    Without batches, all are rounded to nearest, as tables and convolutions always are.
    """
    equalized = equalize(model, plan.equalized)
    layers = find_planned_layers(equalized.graph, plan)
    rounded = equalized.clone()
    nodes = {node.name: node for node in rounded.graph}
    names = patterns.UniqueNames(patterns.tensor_names(rounded.graph))
    float_run = PartialExecution(equalized, open_cpu, batches)
    rounded_run = PartialExecution(rounded, open_cpu, batches)
    results: dict[str, RoundedLayer] = {}
    for number, (node, layer) in enumerate(layers.items()):
        name = node.name or ""
        weight = node.inputs[layer.weight.slot] if layer.weight is not None else None
        if weight is None:
            continue
        nearest = RoundedLayer(round_layer(node, weight, plan), is_product=node.op_type in PRODUCTS)
        results[name] = nearest
        if nearest.is_product and batches:
            source, output = node.inputs[0], str(node.outputs[0].name)
            assert source is not None
            float_run.run_to(name, output, inclusive=True)
            rounded_run.run_to(name, str(source.name))
            inputs = [batch[str(source.name)] for batch in rounded_run.live]
            targets = [batch[output] for batch in float_run.live]
            generator = np.random.default_rng([0, number])
            problem = _read_problem(node, inputs, targets, max_rows, generator)
            results[name] = _round_product(problem, node, nearest, plan)
        _set_layer(nodes[name], layer, results[name], names)
        progress(number + 1, len(layers))
    return results


def _set_layer(
    node: ir.Node, layer: LayerPlan, rounded: RoundedLayer, names: patterns.UniqueNames
) -> None:
    """Give a node the float weight of its integers, and its bias."""
    value = node.inputs[layer.weight.slot] if layer.weight is not None else None
    if value is None or value.shape is None:
        return
    shape = value.shape.numpy()
    values = restore_rows(node, rounded.weight.dequantize(), shape)
    patterns.set_constant(value, values)
    set_bias(node, rounded.bias, names)


def _find_bias(node: ir.Node) -> FloatArray | None:
    """Return the constant that is added to each output of a product, if no other node reads it."""
    value = patterns.find_matmul_bias(node)[1]
    if node.op_type == "Gemm" and len(node.inputs) > BIAS_SLOT:
        value = node.inputs[BIAS_SLOT]
    array = patterns.constant_array(value)
    units = patterns.weight_shape(node)[patterns.output_axis(node)]
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if value is None or array is None or array.shape != (units,) or scaled:
        return None
    return array.astype(np.float32) if len(value.uses()) == 1 else None


@dataclass(frozen=True, eq=False)
class _Product:
    """A product with its rows of inputs, and of outputs without bias: to round on, to validate."""

    weight: FloatArray
    bias: FloatArray | None
    activation: Activation
    rows: Sequence[FloatArray]
    targets: Sequence[FloatArray]

    def validation_error(self, layer: RoundedLayer) -> float:
        """Return the squared error behind the activation on the rows that were held out."""
        outputs, targets = self.rows[1] @ layer.weight.dequantize().T, self.targets[1]
        if self.bias is not None:
            outputs += self.bias if layer.bias is None else layer.bias
            targets = targets + self.bias
        error = self.activation.apply(outputs) - self.activation.apply(targets)
        squares = float(np.square(error).sum(dtype=np.float64))
        return squares if math.isfinite(squares) else math.inf


def _read_problem(
    node: ir.Node,
    inputs: Sequence[FloatArray],
    targets: Sequence[FloatArray],
    max_rows: int,
    generator: np.random.Generator,
) -> _Product:
    """Return a product with rows at random positions of every image."""
    value = node.inputs[1]
    assert value is not None
    weight, bias = weight_rows(node, weight_array(value, node)), _find_bias(node)
    inside = bias if node.op_type == "Gemm" else None
    max_rows = min(max_rows, MAX_ROW_BYTES // (4 * weight.shape[1]))
    available = im2col.count_rows(node, targets[0])
    count = min(available, max(1, max_rows // sum(map(len, targets))))
    rows, outputs = list[FloatArray](), list[FloatArray]()
    for batch, target in zip(inputs, targets, strict=True):
        line = np.stack([generator.permutation(available)[:count] for _ in target])
        rows.append(im2col.gather_inputs(node, batch, target, line)[0])
        output = im2col.gather_outputs(node, target, line)[0].T
        outputs.append(output if inside is None else output - inside)
    holdout = range(HOLDOUT_EVERY - 1, len(rows), HOLDOUT_EVERY) or [len(rows) - 1]
    training = [batch for batch in range(len(rows)) if batch not in holdout]
    parts = [
        [np.concatenate([arrays[batch] for batch in batches]) for batches in (training, holdout)]
        for arrays in (rows, outputs)
    ]
    activation = find_activation(patterns.find_matmul_bias(node)[0] or node)
    return _Product(weight, bias, activation, *parts)


def _round_product(
    product: _Product, node: ir.Node, nearest: RoundedLayer, plan: Plan
) -> RoundedLayer:
    """Return the best of the nearest integers, those with a corrected bias, and GPTQ's."""
    rows, targets = product.rows[0], product.targets[0]
    mean_rows, mean_targets = rows.mean(axis=0), targets.mean(axis=0)
    if product.bias is not None:
        # What all rows have in common is for the bias to make up for.
        rows, targets = rows - mean_rows, targets - mean_targets
    gram = rows.T @ rows
    missing = COMPENSATION * (targets.T @ rows - product.weight @ gram)
    problem = RoundingProblem(product.weight, gram.astype(np.float64), missing.astype(np.float64))
    learned = round_gptq(problem, layer_format(node, plan), plan.weight_method)
    candidates = [nearest]
    for weight in (nearest.weight, learned):
        bias = None
        if product.bias is not None:
            bias = product.bias + mean_targets - weight.dequantize() @ mean_rows
            bias = bias.astype(np.float32)
        candidates.append(replace(nearest, weight=weight, bias=bias, is_learned=weight is learned))
    return min(candidates, key=product.validation_error)
