"""Quantizers in other places of a graph that is being read, with the same answers.

A normalization scales the steps of a weight, an activation keeps values on their grid, and what the
graph returns has no copy of its own.
"""

from collections.abc import Collection

import onnx_ir as ir

from qconvert.graph import passes, patterns
from qconvert.quantize.qdq_reading import QDQReading, Quantizer, insert_behind
from qconvert.quantize.quantized_constant import round_weight

AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


def fold_norms(reading: QDQReading) -> None:
    """Fold what scales the channels of a convolution into the steps of its weight."""
    graph = reading.builder.graph
    for norm in [node for node in graph if patterns.is_standard(node, *AFFINE)]:
        sources = [value for value in norm.inputs[:2] if value is not None and value.producer()]
        if reading.inputs.get(norm) or any(value in reading.tensors for value in sources):
            continue
        linear = next((patterns.producer_of(value) for value in sources), None)
        output = norm.outputs[0]
        factors = passes.fold_affine(graph, norm, reading.builder.names)
        if factors is None or linear is None:
            continue
        if output in reading.tensors:
            reading.tensors[linear.outputs[0]] = reading.tensors.pop(output)
        if linear in reading.weights:
            reading.weights[linear] = reading.weights[linear].scaled(factors)
            reading.repairs["normalizations folded into integer weights"] += 1


def move_behind_activations(reading: QDQReading) -> None:
    """Move Q/DQ between an operator and its Relu or Clip behind that, where it changes nothing.

    Both ways round values below zero to zero: relu(round(x)) = round(relu(x)) on a grid that has
    zero on it. A Clip needs its limits on the grid, or beyond it.
    """
    for node in list(reading.builder.graph):
        if reading.inputs.get(node) != {0} or node.op_type not in patterns.FUSIBLE_ACTIVATIONS:
            continue
        before, after = node.inputs[0], node.outputs[0]
        if before is None or patterns.only_reader(before) is not node or after.is_graph_output():
            continue
        quantizer = reading.tensors[before]
        others = reading.tensors.get(after, quantizer)
        if (
            before.producer() is None
            or others.grid != quantizer.grid
            or not is_on_grid(node, quantizer)
        ):
            continue
        del reading.inputs[node], reading.tensors[before]
        reading.tensors[after] = quantizer
        for reader, slot in after.uses():
            reading.inputs.setdefault(reader, set()).add(slot)
        reading.repairs["quantizers between an operator and its activation"] += 1


def is_on_grid(node: ir.Node, quantizer: Quantizer) -> bool:
    """Whether a Relu or Clip maps every value of a grid to one of its values."""
    for value in node.inputs[1:]:
        limit = patterns.constant_array(value)
        if value is not None and limit is None:
            return False
        if limit is not None:
            integer = float(limit) / quantizer.scale + quantizer.zero_point
            if 0 < integer < 255 and abs(integer - round(integer)) > 1e-6:
                return False
    return True


def drop_copies_at_outputs(reading: QDQReading) -> None:
    """Let the graph return a tensor itself instead of its copy, where all read it quantized."""
    graph = reading.builder.graph
    for copy in list(reading.outputs):
        source, result = copy.inputs[0], copy.outputs[0]
        producer = source.producer() if source is not None else None
        if source is None or producer is None or source.is_graph_output() or result.uses():
            continue
        uses = [use for use in source.uses() if use.node is not copy]
        quantizer, alone = reading.tensors[result], len(producer.outputs) == 1
        # The weight of a layer that is not quantized itself may be float.
        if producer.op_type in patterns.WEIGHTED and not _has_integers(reading, producer):
            continue
        if not alone or reading.tensors.get(source, quantizer).grid != quantizer.grid:
            continue
        if any(slot not in reading.inputs.get(node, ()) for node, slot in uses):
            continue
        graph.outputs[:] = [source if output is result else output for output in graph.outputs]
        name, result.name = result.name, reading.builder.names.reserve(f"{result.name}_removed")
        source.name = name
        source.shape, source.type = result.shape, result.type
        graph.remove(copy, safe=True)
        reading.outputs.remove(copy)
        reading.outputs.add(producer)
        reading.tensors[source] = reading.tensors.pop(result)


def _has_integers(reading: QDQReading, node: ir.Node) -> bool:
    """Whether a layer reads a quantized activation and a weight of signed bytes."""
    constant, slots = reading.weights.get(node), reading.inputs.get(node, set())
    if constant is None:
        return slots == {0, 1}
    is_matrix = node.op_type in patterns.CONVOLUTIONS or constant.integers.ndim == 2
    rounded = round_weight(constant, patterns.output_axis(node))
    return 0 in slots and is_matrix and not isinstance(rounded, str)


def read_copies(reading: QDQReading, names: Collection[str]) -> None:
    """Let nodes that stay in float read quantized tensors through an Identity.

    A plan then says of these nodes themselves that they are in float, and why.
    """
    for node in [node for node in reading.builder.graph if node.name in names]:
        for slot in reading.inputs.pop(node, ()):
            value = node.inputs[slot]
            assert value is not None, "it is read"
            copy = insert_behind(reading, "Identity", [value], f"{value.name}_read")
            reading.inputs[copy] = {0}
            node.replace_input_with(slot, copy.outputs[0])
