"""Shift tensors behind a Relu or a Clip at zero, so that a symmetric grid uses all its integers.

No value there is below zero, so the negative half of a symmetric grid stands for nothing. The plan
gives a shifted tensor a zero point instead, and its step is half as wide; then the zero point moves
into the network around it, because a backend with symmetric grids takes none:

    Clip(W x + b, 0, 6) -> V y + c    becomes    Clip(W x + b - a, -a, 6 - a) -> V y + c + a sum(V)

with a = -zero point * step. The operators stay the same, but for a Relu, which becomes a Clip; so
do all values behind the readers: V are the integers that ship, so not even their rounding makes a
difference. A padded convolution would need `-a` where it reads zeros: none may read such a tensor.
"""

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import UsageError
from qconvert.core.scales import FloatArray
from qconvert.graph import patterns
from qconvert.quantize.plan import BIAS_SLOT, Plan
from qconvert.quantize.plan_files import read_embedded_plan

PRODUCERS = ("Conv", "Gemm")


def read_changed_tensors(reference: ir.Graph, model: ir.Model) -> set[str]:
    """Return the tensors that a quantized model holds shifted, and its float model as they are."""
    plan = read_embedded_plan(model)
    return changed_tensors(reference, plan.shifted) if plan is not None else set()


def find_shiftable(graph: ir.Graph, plan: Plan) -> list[str]:
    """Return the tensors of a float graph that a plan quantizes and that can be shifted."""
    if not plan.activations.symmetric or not plan.activations.fills_type or plan.integer_bias:
        return []
    values = (value for value in patterns.computed_values(graph) if value.name in plan.tensors)
    return [str(value.name) for value in values if _is_shiftable(value)]


def require_shiftable(graph: ir.Graph, plan: Plan) -> None:
    """Refuse a plan that shifts a tensor which must stay as it is."""
    values = [value for value in patterns.computed_values(graph) if _is_shiftable(value)]
    if wrong := set(plan.shifted) - {value.name for value in values}:
        raise UsageError(
            f"the plan shifts `{min(wrong)}`, whose producer or readers do not allow it",
            hint='take it out of "shifted" in the plan',
        )


def shift_tensors(graph: ir.Graph, names: Collection[str], taken: patterns.UniqueNames) -> None:
    """Move the zero points of these tensors of a Q/DQ graph into what is around them."""
    for value in _values(graph, names):
        quantizers = _quantizers(value)
        if quantizers:
            scale, zero_point = (_constant(quantizers[0], slot) for slot in (1, 2))
            _shift(value, float(scale) * -float(zero_point), taken)
            for node in quantizers:
                _remove_zero_point(node)


def changed_tensors(graph: ir.Graph, names: Collection[str]) -> set[str]:
    """Return the tensors of a float graph whose values a shift changes: before and behind it."""
    around = {value for value in patterns.computed_values(graph) if value.name in names}
    sources = {source for value in around if (source := _rectifier(value).inputs[0]) is not None}
    return {str(value.name) for value in around | sources}


def _is_shiftable(value: ir.Value) -> bool:
    """Whether the operators on both sides of a tensor take a shift."""
    rectifier = value.producer()
    if rectifier is None or value.is_graph_output() or not _is_rectifier(rectifier):
        return False
    source = rectifier.inputs[0]
    producer = source.producer() if source is not None else None
    if source is None or producer is None or patterns.only_reader(source) is not rectifier:
        return False
    readers = [use.node for use in value.uses()]
    return (
        _takes_bias(producer)
        and bool(readers)
        and all(_takes_bias(node) and not _is_padded(node) for node in readers)
        and all(use.idx == 0 for use in value.uses())
    )


def _is_rectifier(node: ir.Node) -> bool:
    """Whether a node is a Relu, or a Clip from zero to a constant."""
    if not patterns.is_standard(node, "Clip"):
        return patterns.is_standard(node, "Relu")
    limits = [patterns.constant_array(value) for value in node.inputs[1:]]
    return len(limits) == 2 and all(limit is not None for limit in limits) and limits[0] == 0


def _takes_bias(node: ir.Node) -> bool:
    """Whether a node has a constant weight, and as bias one constant for each output, or none."""
    if (
        not patterns.is_standard(node, *PRODUCERS)
        or patterns.constant_array(node.inputs[1]) is None
    ):
        return False
    if node.op_type == "Gemm" and any(
        node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")
    ):
        return False
    bias = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
    array = patterns.constant_array(bias)
    return bias is None or (array is not None and array.shape == (_channels(node),))


def _is_padded(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or any(node.attributes.get_ints("pads", ()))


def _channels(node: ir.Node) -> int:
    return int(_weight(node).shape[patterns.output_axis(node)])


def _values(graph: ir.Graph, names: Collection[str]) -> list[ir.Value]:
    return [value for value in patterns.computed_values(graph) if value.name in names]


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [node for node in value.consumers() if patterns.is_standard(node, "QuantizeLinear")]


def _rectifier(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None, "only outputs of a Clip are shifted"
    return node


def _shift(value: ir.Value, offset: float, names: patterns.UniqueNames) -> None:
    """Let a tensor hold its values less an offset."""
    rectifier = _rectifier(value)
    source = rectifier.inputs[0]
    assert source is not None, "ONNX requires it"
    producer = patterns.producer_of(source)
    assert producer is not None, "it takes a bias"
    _add_to_bias(producer, np.full(_channels(producer), -offset), names)
    for reader, weight in _read_weights(value):
        axis = patterns.output_axis(reader)
        sums = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).sum(1, np.float64)
        _add_to_bias(reader, offset * sums, names)
    # A Relu becomes a Clip without a largest value.
    limits = [patterns.constant_array(limit) for limit in rectifier.inputs[1:]] or [np.zeros(())]
    assert isinstance(rectifier.graph, ir.Graph), "nodes of subgraphs are left as they are"
    shifted = [
        patterns.add_constant(
            rectifier.graph,
            names.reserve(f"{value.name}_{'max' if slot else 'min'}"),
            np.asarray(float(limit) - offset, np.float32),
        )
        for slot, limit in enumerate(limits)
        if limit is not None
    ]
    patterns.replace_node(rectifier, "Clip", [source, *shifted])


def _read_weights(value: ir.Value) -> Iterator[tuple[ir.Node, NDArray[np.float32]]]:
    """Yield the readers of a tensor, behind its quantizers, and their weights as they read them."""
    for reader, _ in value.uses():
        if patterns.is_standard(reader, "QuantizeLinear", "DequantizeLinear"):
            yield from _read_weights(reader.outputs[0])
        else:
            yield reader, _weight(reader)


def _weight(node: ir.Node) -> FloatArray:
    """Return the weight of a layer, from its integers where it has some."""
    array = patterns.dequantized_array(node.inputs[1])
    assert array is not None, "the weight is constant"
    return np.asarray(array, np.float32)


def _add_to_bias(node: ir.Node, added: NDArray[np.float64], names: patterns.UniqueNames) -> None:
    bias = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
    before = patterns.constant_array(bias)
    total = added if before is None else before.astype(np.float64) + added
    name = names.reserve(f"{node.name}.shifted_bias")
    patterns.set_constant_input(node, BIAS_SLOT, name, total.astype(np.float32))


def _remove_zero_point(quantize: ir.Node) -> None:
    """Make the zero point of a pair zero; both nodes read the same constant."""
    value = quantize.inputs[2]
    assert value is not None, "the builder stores it"
    patterns.set_constant(value, np.zeros_like(_constant(quantize, 2)))


def _constant(node: ir.Node, slot: int) -> NDArray[np.generic]:
    array = patterns.constant_array(node.inputs[slot])
    assert array is not None, "the builder stores it"
    return array
