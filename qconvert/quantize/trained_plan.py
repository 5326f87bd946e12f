"""The plan for a backend that computes what a network was trained to compute in integers."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.scales import FloatArray, Range, round_scale_up
from qconvert.graph import patterns
from qconvert.quantize.plan import LayerPlan, Plan, RestPrecision, RoundedWeight
from qconvert.quantize.plan_files import PlanWithWeights, weights_digest
from qconvert.quantize.qdq_moves import is_on_grid
from qconvert.quantize.qdq_reading import Quantizer
from qconvert.quantize.scheme import Scheme, linear_layer
from qconvert.quantize.trained_qdq import MAX_DETAILS, TrainedModel

METHOD = "training"
LEFT_IN_FLOAT = "its training left it in float"
# fp16 scales below have few digits left, and below 2**-24 none.
LEAST_FP16_STEP = 2.0**-20


def make_trained_plan(
    trained: TrainedModel, scheme: Scheme, rest: RestPrecision = "fp32"
) -> PlanWithWeights:
    """Return the plan of a backend, and the weights; refuse grids that the backend has not."""
    _require_grids(trained, scheme)
    model, ranges = trained.model, dict[str, Range]()
    layers = _layers(trained)
    for name, quantizer in trained.tensors.items():
        ranges[name] = _range(quantizer, scheme)
    if scheme.integer_bias:
        _quantize_before_activations(model, trained, layers, ranges)
    weights = {
        name: _with_scales_of(trained.weights[name], layer.weight.axis, rest)
        for name, layer in layers.items()
        if layer.weight is not None
    }
    plan = Plan(
        model=onnx_io.fingerprint(model),
        scheme=scheme.name,
        method=METHOD,
        weight_method="minmax",
        activations=scheme.activations,
        weights=scheme.weights,
        integer_bias=scheme.integer_bias,
        layers=layers,
        tensors=ranges,
        rest=rest,
        portable=scheme.portable,
        learned=weights_digest(weights),
    )
    return PlanWithWeights(plan, weights)


def _layers(trained: TrainedModel) -> dict[str, LayerPlan]:
    """Return a layer for each node that reads or returns integers, and each weighted one."""
    layers: dict[str, LayerPlan] = {}
    for node in trained.model.graph:
        name = node.name or ""
        slots, remark = trained.inputs.get(name, ()), trained.remarks.get(name, "")
        is_weighted = patterns.is_standard(node, *patterns.WEIGHTED)
        if name in trained.weights:
            weight = linear_layer(node).weight
            layers[name] = LayerPlan(node.op_type, slots, weight, name in trained.outputs)
        elif slots or name in trained.outputs:
            layers[name] = LayerPlan(node.op_type, slots, output=name in trained.outputs)
        elif is_weighted:
            layers[name] = LayerPlan(node.op_type, left=remark or LEFT_IN_FLOAT)
    return layers


def _require_grids(trained: TrainedModel, scheme: Scheme) -> None:
    """Refuse asymmetric activations where the scheme is symmetric."""
    if not scheme.activations.symmetric:
        return
    readers = _readers(trained)
    problems = [
        f"`{name}`, read by {readers.get(name, 'the graph')}: zero point "
        f"{quantizer.zero_point - 128} in int8"
        for name, quantizer in trained.tensors.items()
        if not quantizer.fits_symmetric
    ]
    if problems:
        more = len(problems) - MAX_DETAILS
        raise QConvertError(
            f"`{scheme.name}` has only symmetric activations, and this model was trained with "
            f"{len(problems)} that are not",
            details=problems[:MAX_DETAILS] + ([f"and {more} more"] if more > 0 else []),
            hint="train with symmetric int8 activations (zero point 0), or build for the CPU: "
            "`--backend cpu`",
        )


def _readers(trained: TrainedModel) -> dict[str, str]:
    nodes = {node.name: node for node in trained.model.graph}
    return {
        str(value.name): f"`{name}`"
        for name, slots in trained.inputs.items()
        for slot in slots
        if name in nodes and (value := nodes[name].inputs[slot]) is not None
    }


def _range(quantizer: Quantizer, scheme: Scheme) -> Range:
    """Return the range that has exactly this grid in a scheme."""
    grid, scale = scheme.activations, quantizer.scale
    if grid.symmetric:
        return Range(-grid.symmetric_max * scale, grid.symmetric_max * scale)
    return Range(-quantizer.zero_point * scale, (255 - quantizer.zero_point) * scale)


def _quantize_before_activations(
    model: ir.Model, trained: TrainedModel, layers: dict[str, LayerPlan], ranges: dict[str, Range]
) -> None:
    """Quantize the input of a Relu or Clip too where it cannot be fused with a quantizer.

    ONNX Runtime drops one in front of a quantizer whose zero point is the smallest integer.
    Otherwise the operator before would run in float. The same grid twice changes no number.
    """
    for node, source in _unfused_activations(model, trained, layers):
        after, before = str(node.outputs[0].name), str(node.inputs[0].name)  # type: ignore[union-attr]
        ranges[before] = ranges[after]
        layers[str(source.name)] = replace(layers[str(source.name)], output=True)
        layers[str(node.name)] = LayerPlan(
            node.op_type, output=True, note="quantized on both sides, on one grid"
        )


def _unfused_activations(
    model: ir.Model, trained: TrainedModel, layers: dict[str, LayerPlan]
) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield each Relu or Clip between a quantized operator and a grid with values below zero."""
    for node in model.graph:
        if node.op_type not in patterns.FUSIBLE_ACTIVATIONS:
            continue
        after, source = node.outputs[0], patterns.producer_of(node.inputs[0])
        quantizer = trained.tensors.get(str(after.name))
        own = layers.get(str(node.name))
        if source is None or quantizer is None or (own is not None and own.inputs):
            continue
        fused = patterns.find_fused_activation(source) is node and source.name in layers
        integers = fused and layers[str(source.name)].inputs and not layers[str(source.name)].left
        reads = [use.idx in trained.inputs.get(str(use.node.name), ()) for use in after.uses()]
        needed = integers and quantizer.zero_point > 0 and is_on_grid(node, quantizer)
        if needed and all(reads) and (reads or own is not None):
            yield node, source


def _with_scales_of(weight: RoundedWeight, axis: int, rest: RestPrecision) -> RoundedWeight:
    """Return a weight whose steps the type of `rest` represents.

    A step too small for fp16 becomes larger: its channel moves by less than fp16 resolves.
    """
    if rest == "fp32":
        return weight
    steps: FloatArray = weight.steps
    integers = weight.integers
    if rest == "fp16" and (steps < LEAST_FP16_STEP).any():
        steps = np.maximum(steps, np.float32(LEAST_FP16_STEP))
        shape = [-1 if index == axis else 1 for index in range(integers.ndim)]
        integers = np.rint(integers * (weight.steps / steps).reshape(shape)).astype(np.int8)
    return RoundedWeight(integers, round_scale_up(steps.astype(np.float64), rest), None)


def describe_repairs(trained: TrainedModel) -> str:
    """Return how many quantizers were read, and what was written in another way."""
    repairs = trained.repairs.items()
    kinds = ", ".join(f"{count} {kind}" for kind, count in repairs) or "none"
    return f"quantized by its training: {trained.quantizers} quantizers read, repaired: {kinds}"


def describe_training(trained: TrainedModel, saved: PlanWithWeights) -> tuple[str, ...]:
    """Return what to know of a plan that comes from a training."""
    plan, notes = saved.plan, [describe_repairs(trained)]
    signed = plan.activations.signed
    shifted = sum(quantizer.signed != signed for quantizer in trained.tensors.values())
    if shifted:
        kind = "int8" if signed else "uint8"
        notes.append(f"{shifted} activations are written as {kind}: the same grid in another type")
    if trained.remarks:
        (name, reason), *others = trained.remarks.items()
        more = f"; so are {len(others)} more" if others else ""
        notes.append(f"`{name}` is computed in float: {reason}{more}")
    if plan.portable:
        notes.append("`--portable` limits pairs of weights: they differ from those of the training")
    if plan.integer_bias:
        notes += _describe_cpu(trained, saved)
    return tuple(notes)


def _describe_cpu(trained: TrainedModel, saved: PlanWithWeights) -> Iterator[str]:
    """Yield what keeps ONNX Runtime from computing layers in integers, or them from being exact."""
    nodes = {node.name: node for node in trained.model.graph}
    unquantized = [
        name
        for name in saved.weights
        if nodes[name].op_type == "Conv" and not _is_quantized(nodes[name].outputs[0], saved.plan)
    ]
    if unquantized:
        yield (
            f"{len(unquantized)} convolutions, as `{unquantized[0]}`, have no quantizer behind "
            "them: ONNX Runtime computes those in float. Train with a quantizer behind each "
            "convolution, or behind its activation"
        )
    smallest = sum(int((weight.integers == -128).sum()) for weight in saved.weights.values())
    if smallest:
        yield (
            f"{smallest} weights are -128: sums of two such products can overflow on ARM CPUs. "
            "Train with weights from -127 to 127"
        )


def _is_quantized(value: ir.Value, plan: Plan) -> bool:
    """Whether a quantizer reads a tensor, or the activation that is fused with its producer."""
    if value.name in plan.tensors:
        return True
    reader = patterns.only_reader(value)
    fused = reader is not None and reader.op_type in patterns.FUSIBLE_ACTIVATIONS
    return fused and reader is not None and reader.outputs[0].name in plan.tensors
