"""Round the weights of a weight-only format on calibration images, layer by layer.

As in `learned_rounding`, each product is rounded on the actual inputs that the rounded layers before
it compute, towards its float outputs, so that it also makes up for some of their errors, its bias
first of all. It keeps GPTQ's integers only if the error of its outputs falls on batches held out
from it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.scales import FloatArray
from qconvert.core.tensors import Tensors
from qconvert.graph import patterns
from qconvert.optimize import im2col
from qconvert.optimize.coordinate_descent import Activation, find_activation
from qconvert.optimize.partial_execution import PartialExecution
from qconvert.quantize.grouped_rounding import Matrix, RoundingProblem, round_gptq
from qconvert.quantize.grouped_weights import GroupedWeight, WeightFormat, choose_scales
from qconvert.quantize.plan import BIAS_SLOT, LayerPlan
from qconvert.quantize.weight_only import layer_format, restore_rows, weight_rows
from qconvert.quantize.weights import weight_array

# One batch of so many is held out from every layer.
HOLDOUT_EVERY = 4
# Bytes that the rows of one layer may take.
MAX_ROW_BYTES = 256_000_000
# How much of the error of a layer's inputs its weights make up for: all of it would fit the
# training images and no others.
COMPENSATION = 0.25


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """The integers of a weight, and the bias that goes with them, None if it stays as it is."""

    weight: GroupedWeight
    bias: FloatArray | None = None


RoundedLayers = Mapping[str, RoundedLayer]


def round_to_nearest(
    model: ir.Model, layers: Mapping[str, LayerPlan], kind: WeightFormat, method: str
) -> dict[str, RoundedLayer]:
    """Return every weight that is not left in float, rounded to nearest."""
    rounded: dict[str, RoundedLayer] = {}
    for node in model.graph:
        layer = layers.get(node.name or "")
        if layer is not None and layer.weight is not None:
            value = node.inputs[layer.weight.slot]
            assert value is not None
            rows = weight_rows(node, weight_array(value, node))
            rounded[node.name or ""] = RoundedLayer(
                choose_scales(rows, layer_format(node, kind), method)
            )
    return rounded


def round_on_images(
    model: ir.Model,
    layers: Mapping[str, LayerPlan],
    kind: WeightFormat,
    method: str,
    batches: Sequence[Tensors],
    max_rows: int,
) -> Iterator[tuple[str, RoundedLayer, bool]]:
    """Yield each weight in the order of the graph, and whether it is GPTQ's.

    Weights of tables and convolutions, and those that do not gain, are rounded to nearest.
    """
    nearest = round_to_nearest(model, layers, kind, method)
    rounded = model.clone()
    nodes = {node.name: node for node in rounded.graph}
    # Looked up before the model changes: the float run computes the model as it is.
    float_run = PartialExecution(model, open_cpu, batches)
    rounded_run = PartialExecution(rounded, open_cpu, batches)
    for number, node in enumerate(list(model.graph)):
        name = node.name or ""
        if name not in nearest:
            continue
        result, is_learned = nearest[name], False
        if node.op_type in ("MatMul", "Gemm"):
            source, output = node.inputs[0], str(node.outputs[0].name)
            assert source is not None
            float_run.run_to(name, output, inclusive=True)
            rounded_run.run_to(name, str(source.name))
            inputs = [batch[str(source.name)] for batch in rounded_run.live]
            targets = [batch[output] for batch in float_run.live]
            generator = np.random.default_rng([0, number])
            problem = _read_problem(node, inputs, targets, max_rows, generator)
            result, is_learned = _round_layer(problem, result, kind, method)
        yield name, result, is_learned
        set_float_weight(nodes[name], result)


def set_float_weight(node: ir.Node, layer: RoundedLayer) -> None:
    """Give a node the float weight of its integers, and its bias."""
    value = node.inputs[0 if node.op_type == "Gather" else 1]
    assert value is not None
    assert value.shape is not None
    shape = value.shape.numpy()
    patterns.set_constant(value, restore_rows(node, layer.weight.dequantize(), shape))
    set_bias(node, layer)


def set_bias(node: ir.Node, layer: RoundedLayer) -> None:
    """Give a node, or the Add behind it, the bias of a layer."""
    value = _find_bias(node)
    if layer.bias is not None and value is not None:
        array = patterns.constant_array(value)
        assert array is not None
        patterns.set_constant(value, layer.bias.reshape(array.shape).astype(np.float32))


def _find_bias(node: ir.Node) -> ir.Value | None:
    """Return the constant that is added to each output, if no other node reads it."""
    value = patterns.find_matmul_bias(node)[1]
    if node.op_type == "Gemm" and len(node.inputs) > BIAS_SLOT:
        value = node.inputs[BIAS_SLOT]
    array = patterns.constant_array(value)
    units = patterns.weight_shape(node)[0 if patterns.is_transposed(node) else -1]
    if value is None or array is None or array.dtype != np.float32 or array.size != units:
        return None
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return value if plain and len(value.uses()) == 1 else None


@dataclass(frozen=True, eq=False)
class _Problem:
    """A product: rows of inputs and outputs without bias, in two parts: to learn and to validate."""

    weight: FloatArray
    bias: FloatArray | None
    activation: Activation
    rows: tuple[FloatArray, FloatArray]
    targets: tuple[FloatArray, FloatArray]

    def validation_error(self, layer: RoundedLayer) -> float:
        """Return the squared error behind the activation on the rows that were held out."""
        added = layer.bias if layer.bias is not None else self.bias
        outputs = self.rows[1] @ layer.weight.dequantize().T
        targets = self.targets[1]
        if added is not None and self.bias is not None:
            outputs, targets = outputs + added, targets + self.bias
        error = self.activation.apply(outputs) - self.activation.apply(targets)
        return float(np.square(error).sum(dtype=np.float64))


def _read_problem(
    node: ir.Node,
    inputs: Sequence[FloatArray],
    targets: Sequence[FloatArray],
    max_rows: int,
    generator: np.random.Generator,
) -> _Problem:
    """Return the problem of a product, with rows at random positions of every image."""
    array = patterns.constant_array(node.inputs[1])
    assert array is not None
    weight, value = weight_rows(node, array), _find_bias(node)
    constant = patterns.constant_array(value)
    bias = None if constant is None else constant.astype(np.float32).reshape(-1)
    is_inside = node.op_type == "Gemm" and bias is not None
    max_rows = min(max_rows, MAX_ROW_BYTES // (4 * weight.shape[1]))
    available = im2col.count_rows(node, targets[0])
    count = min(available, max(1, max_rows // sum(map(len, targets))))
    rows, outputs = list[FloatArray](), list[FloatArray]()
    for batch, target in zip(inputs, targets, strict=True):
        line = np.stack([generator.permutation(available)[:count] for _ in target])
        rows.append(im2col.gather_inputs(node, batch, target, line)[0])
        output = im2col.gather_outputs(node, target, line)[0].T
        outputs.append(output - bias if is_inside and bias is not None else output)
    holdout = range(HOLDOUT_EVERY - 1, len(rows), HOLDOUT_EVERY) or [len(rows) - 1]
    training = [batch for batch in range(len(rows)) if batch not in holdout]
    parts = [
        tuple(np.concatenate([arrays[batch] for batch in batches]) for batches in (training, holdout))
        for arrays in (rows, outputs)
    ]
    add = patterns.find_matmul_bias(node)[0]
    activation = find_activation(add or node)
    return _Problem(weight, bias, activation, (parts[0][0], parts[0][1]), (parts[1][0], parts[1][1]))


def _round_layer(
    problem: _Problem, nearest: RoundedLayer, kind: WeightFormat, method: str
) -> tuple[RoundedLayer, bool]:
    """Return the best of the nearest integers, those with a corrected bias, and GPTQ's."""
    rows, targets = problem.rows[0], problem.targets[0]
    mean_rows, mean_targets = rows.mean(axis=0), targets.mean(axis=0)
    if problem.bias is not None:
        # What all rows have in common is the bias's to make up for.
        rows, targets = rows - mean_rows, targets - mean_targets
    gram: Matrix = (rows.T @ rows).astype(np.float64)
    missing = targets.T @ rows - problem.weight @ gram.astype(np.float32)
    learned = round_gptq(
        RoundingProblem(problem.weight, gram, COMPENSATION * missing.astype(np.float64)),
        kind,
        method,
    )
    candidates = [nearest]
    for weight in (nearest.weight, learned):
        bias = None
        if problem.bias is not None:
            bias = problem.bias + mean_targets - weight.dequantize() @ mean_rows
        candidates.append(RoundedLayer(weight, bias))
    errors = [problem.validation_error(candidate) for candidate in candidates]
    best = min(range(len(errors)), key=lambda index: errors[index] if math.isfinite(errors[index]) else math.inf)
    return candidates[best], best == len(candidates) - 1
