"""Q/DQ graphs that training or another tool quantized, read as a float model and its quantizers.

Every tool places QuantizeLinear and DequantizeLinear (Q/DQ) in its own way. `read_qdq` removes them
and returns what they say: the grid of every tensor that a node reads quantized, and the integers of
every weight. From that, `trained_plan` makes a plan for a backend, and `apply_plan` writes the
graph with the same arithmetic and Q/DQ where that backend needs them.

All rewrites are exact. What cannot be read exactly is refused with the names of the nodes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.graph import passes, patterns
from qconvert.quantize.plan import RoundedWeight
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.quantized_constant import (
    EXPORT_HINT,
    MOVES,
    NodeParams,
    QuantizedConstant,
    clip_bounds,
    read_constant,
    read_params,
    round_weight,
)

QDQ_HINT = (
    "export the network with QuantizeLinear and DequantizeLinear nodes "
    "(in ONNX Runtime's quantizer: `quant_format=QuantFormat.QDQ`)"
)
AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax"})
# Behind these a quantizer that clips at zero may stand for a Relu; other operators keep the sign.
RECTIFIED = patterns.WEIGHTED | {"Add", "BatchNormalization"}
MAX_DETAILS = 5
CLIPPED = "activations that only a quantizer clipped"


@dataclass(frozen=True)
class Quantizer:
    """The grid of an activation: value = (integer - zero_point) * scale, for integers 0 to 255.

    Signed integers count from -128, which is the same grid in another type. `low` and `high` are
    the integers that occur, where a Clip limits them.
    """

    scale: float
    zero_point: int
    low: int = 0
    high: int = 255

    @property
    def grid(self) -> tuple[float, int]:
        """Scale and zero point."""
        return self.scale, self.zero_point

    @property
    def fits_symmetric(self) -> bool:
        """Whether signed bytes without a zero point have all its values."""
        return self.low - self.zero_point >= -128 and self.high - self.zero_point <= 127


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A float model, and how the file that it was read from quantizes it.

    `tensors` has the grid of each quantized activation, `inputs` the slots in which a node reads
    one, `outputs` the nodes whose result the graph returns quantized. `weights` has integers by
    node, and `remarks` says why other weights have none. `repairs` counts what was written in
    another way with the same result; `quantizers` are all that the file had.
    """

    model: ir.Model
    tensors: dict[str, Quantizer]
    inputs: dict[str, tuple[int, ...]]
    outputs: frozenset[str]
    weights: dict[str, RoundedWeight]
    remarks: dict[str, str]
    repairs: dict[str, int]
    quantizers: int


@dataclass(frozen=True, eq=False)
class _Reading:
    """A graph that is being read, and what is known of it so far."""

    builder: QDQBuilder
    tensors: dict[ir.Value, Quantizer] = field(default_factory=dict)
    aliases: dict[tuple[ir.Value, Quantizer], ir.Value] = field(default_factory=dict)
    inputs: dict[ir.Node, set[int]] = field(default_factory=dict)
    outputs: set[ir.Node] = field(default_factory=set)
    weights: dict[ir.Node, QuantizedConstant] = field(default_factory=dict)
    repairs: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def read_qdq(model: ir.Model) -> TrainedModel:
    """Return the float model and the quantizers of a Q/DQ graph; refuse what cannot be read."""
    _require_readable(model)
    model = model.clone()
    reading = _Reading(QDQBuilder(model.graph))
    quantizers = sum(node.op_type == "DequantizeLinear" for node in model.graph)
    _remove_from_constants(reading)
    _remove_from_activations(reading)
    _refuse(reading.problems)
    common.RemoveUnusedNodesPass()(model)
    _require_readable(model, also=patterns.QDQ_OPS)
    _fold_norms(reading)
    _move_behind_activations(reading)
    _drop_copies_at_outputs(reading)
    weights, remarks = _round_weights(reading)
    common.RemoveUnusedNodesPass()(model)
    inputs = {node: tuple(sorted(slots)) for node, slots in reading.inputs.items() if slots}
    used = {node.inputs[slot] for node, slots in inputs.items() for slot in slots}
    used |= {value for node in reading.outputs for value in node.outputs}
    return TrainedModel(
        passes.infer_shapes(model)[0],
        {str(value.name): row for value, row in reading.tensors.items() if value in used},
        {str(node.name): slots for node, slots in inputs.items()},
        frozenset(str(node.name) for node in reading.outputs),
        weights,
        remarks,
        dict(reading.repairs),
        quantizers,
    )


def _require_readable(model: ir.Model, also: frozenset[str] = frozenset()) -> None:
    """Refuse operators that compute in integers themselves, and Q/DQ in inner graphs."""
    outer = set(model.graph)
    problems = []
    for node in onnx_io.all_nodes(model):
        op = node.op_type
        if op.startswith("QLinear") or op in patterns.INTEGER_OPS or op in also:
            problems.append(f"`{node.name}` is a {op}")
        elif op == "DynamicQuantizeLinear":
            problems.append(f"`{node.name}` chooses its scale anew for every image")
        elif op in patterns.QDQ_OPS and node not in outer:
            problems.append(f"`{node.name}` is in a graph inside a node")
        elif (kind := _other_float(node)) is not None:
            problems.append(f"`{node.name}` reads {kind}; export the network in float32")
    _refuse(problems, QDQ_HINT)


def _other_float(node: ir.Node) -> str | None:
    """Return the type that a quantizer reads if it is not float32."""
    value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
    if value is None or value.dtype in (ir.DataType.FLOAT, None):
        return None
    return str(value.dtype).lower()


def _refuse(problems: list[str], hint: str = EXPORT_HINT) -> None:
    if problems:
        more = len(problems) - MAX_DETAILS
        raise QConvertError(
            "the quantizers of this model cannot be read without changing its answers",
            details=problems[:MAX_DETAILS] + ([f"and {more} more"] if more > 0 else []),
            hint=hint,
        )


# --- constants ---


def _remove_from_constants(reading: _Reading) -> None:
    """Store every constant that is dequantized as floats, and remember the integers of weights."""
    constants: dict[ir.Value, QuantizedConstant] = {}
    for node in list(reading.builder.graph):
        constant = None
        if node.op_type == "DequantizeLinear":
            constant = read_constant(node, constants)
        elif node.op_type in MOVES and node.inputs[0] in constants:
            constant = constants[node.inputs[0]].moved(node)
        if constant is not None:
            constants[node.outputs[0]] = constant
    for value, constant in constants.items():
        stored = None
        for node, slot in value.uses():
            if node.op_type == "QuantizeLinear" or node.outputs[0] in constants:
                continue
            stored = stored or reading.builder.constant(constant.values, f"{value.name}_float")
            node.replace_input_with(slot, stored)
            if _is_weight(node, slot):
                reading.weights[node] = constant
        if value.is_graph_output():
            reading.problems.append(f"the graph returns the constant `{value.name}`")


def _is_weight(node: ir.Node, slot: int) -> bool:
    if slot != 1 or not patterns.is_standard(node, *patterns.WEIGHTED):
        return False
    return patterns.constant_array(node.inputs[0]) is None


# --- activations ---


def _remove_from_activations(reading: _Reading) -> None:
    """Let all readers of a quantized activation read the activation itself."""
    for node in list(reading.builder.graph):
        if node.op_type != "QuantizeLinear" or not node.outputs[0].uses():
            continue
        if patterns.constant_array(node.inputs[0]) is not None:
            continue
        params = read_params(node)
        reason = _unsupported(node, params)
        if reason:
            reading.problems.append(reason)
            continue
        for clip, dequantizer in _dequantizers(reading, node):
            other = read_params(dequantizer)
            same = np.array_equal(other.zero_point.ravel()[:1], params.zero_point.ravel()[:1])
            if not same or other.scale.ravel()[0] != params.scale.ravel()[0]:
                reading.problems.append(
                    f"`{dequantizer.name}` reads `{node.name}` with another scale or zero point"
                )
                continue
            _remove_pair(reading, node, clip, dequantizer)


def _unsupported(node: ir.Node, params: NodeParams) -> str:
    """Return why the grid of an activation cannot be read; empty if it can."""
    if params.dtype not in ("INT8", "UINT8", "INT4", "UINT4"):
        return f"`{node.name}` quantizes to {params.dtype.lower()}; 8 bits or fewer are supported"
    same = (params.scale == params.scale.flat[0]).all()
    if not same or not (params.zero_point == params.zero_point.flat[0]).all():
        return f"`{node.name}` has a scale for each channel of an activation; use one per tensor"
    return ""


def _dequantizers(reading: _Reading, node: ir.Node) -> Iterable[tuple[ir.Node | None, ir.Node]]:
    """Yield the DequantizeLinear nodes behind a quantizer, each with the Clip in front, or None."""
    for reader in node.outputs[0].consumers():
        if reader.op_type == "DequantizeLinear":
            yield None, reader
            continue
        behind = reader.outputs[0].consumers() if reader.op_type == "Clip" else ()
        if behind and all(other.op_type == "DequantizeLinear" for other in behind):
            yield from ((reader, other) for other in behind)
        else:
            reading.problems.append(
                f"`{reader.name}` ({reader.op_type}) reads the integers of `{node.name}`"
            )
    if node.outputs[0].is_graph_output():
        reading.problems.append(f"the graph returns the integers of `{node.name}`")


def _remove_pair(
    reading: _Reading, node: ir.Node, clip: ir.Node | None, dequantizer: ir.Node
) -> None:
    """Let all that reads a Q/DQ pair read its source quantized."""
    params, source = read_params(node), node.inputs[0]
    assert source is not None, "ONNX requires it"
    shift = {"INT8": 128, "INT4": 128}.get(params.dtype, 0)
    zero_point = int(params.zero_point.flat[0])
    low, high = clip_bounds(clip, params) if clip is not None else (params.low, params.high)
    quantizer = Quantizer(
        float(params.scale.flat[0]), zero_point + shift, low + shift, high + shift
    )
    target = _place(reading, source, quantizer)
    quantizer = reading.tensors[target]
    result = dequantizer.outputs[0]
    for reader, slot in result.uses():
        if reader.op_type != "QuantizeLinear":
            reader.replace_input_with(slot, target)
            reading.inputs.setdefault(reader, set()).add(slot)
        elif _same_grid(reader, node):
            reader.replace_input_with(slot, target)
            reading.repairs["repeated Q/DQ pairs"] += 1
        else:
            copy = _insert(reading, "Identity", [target], f"{target.name}_again")
            reading.inputs[copy] = {0}
            reader.replace_input_with(slot, copy.outputs[0])
    if result.is_graph_output():
        _return_quantized(reading, target, quantizer, result)


def _same_grid(first: ir.Node, second: ir.Node) -> bool:
    one, other = read_params(first), read_params(second)
    return (
        one.dtype == other.dtype
        and np.array_equal(one.scale.ravel()[:1], other.scale.ravel()[:1])
        and np.array_equal(one.zero_point.ravel()[:1], other.zero_point.ravel()[:1])
    )


def _place(reading: _Reading, source: ir.Value, quantizer: Quantizer) -> ir.Value:
    """Return a tensor with the values of `source` that has this grid, within these bounds.

    A tensor has one grid: for a second one its values go through an Identity. A quantizer of fewer
    integers than 256 clips, as a Clip in front of it does. One without integers below zero may have
    replaced a Relu, so the float model needs a Clip there too.
    """
    never_negative = _is_never_negative(source)
    low, high = quantizer.low, quantizer.high
    if never_negative and low <= quantizer.zero_point:
        low, quantizer = 0, replace(quantizer, low=quantizer.zero_point)
    key = (source, quantizer)
    if key in reading.aliases:
        reading.repairs["repeated Q/DQ pairs"] += 1
        return reading.aliases[key]
    target, producer = source, source.producer()
    rectifies = quantizer.zero_point == 0 and not never_negative
    rectifies = rectifies and producer is not None and producer.op_type in RECTIFIED
    if low > 0 or high < 255 or rectifies:
        scale, zero = np.float32(quantizer.scale), quantizer.zero_point
        ends = [np.float32(end - zero) * scale for end in (low, high)]
        limits = [
            reading.builder.constant(np.asarray(end), f"{source.name}_{name}")
            for end, name in zip(ends, ("least", "largest"), strict=True)
        ]
        clip = _insert(reading, "Clip", [source, *limits], f"{source.name}_clipped")
        target = clip.outputs[0]
        kind = "grids of fewer than 256 integers" if low > 0 or high < 255 else CLIPPED
        reading.repairs[kind] += 1
    elif source in reading.tensors or source.is_graph_output():
        target = _insert(reading, "Identity", [source], f"{source.name}_copy").outputs[0]
    reading.tensors[target] = quantizer
    reading.aliases[key] = target
    return target


def _is_never_negative(value: ir.Value) -> bool:
    """Whether a tensor has no values below zero, because an activation made it or its parts."""
    node = patterns.producer_of(value, *patterns.MOVING)
    if node is None:
        return False
    if node.op_type in ("Concat", "AveragePool", "GlobalAveragePool", "ReduceMean"):
        parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return all(part is not None and _is_never_negative(part) for part in parts)
    if node.op_type != "Clip":
        return node.op_type in NEVER_NEGATIVE
    least = patterns.constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    return least is not None and float(least) >= 0


def _insert(reading: _Reading, op: str, inputs: list[ir.Value], name: str) -> ir.Node:
    """Add a node right behind its first input."""
    node, graph = reading.builder.node(op, inputs, name, inputs[0].dtype), reading.builder.graph
    if (producer := inputs[0].producer()) is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node


def _return_quantized(
    reading: _Reading, target: ir.Value, quantizer: Quantizer, result: ir.Value
) -> None:
    """Let the graph return a tensor quantized, under the name of the DequantizeLinear's result."""
    outputs = reading.builder.graph.outputs
    copy = _insert(reading, "Identity", [target], f"{target.name}_returned")
    value = copy.outputs[0]
    value.shape, value.type = result.shape, result.type
    outputs[:] = [value if output is result else output for output in outputs]
    name, result.name = result.name, reading.builder.names.reserve(f"{result.name}_removed")
    value.name = name
    reading.outputs.add(copy)
    reading.tensors[value] = quantizer


# --- exact changes of place ---


def _fold_norms(reading: _Reading) -> None:
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


def _move_behind_activations(reading: _Reading) -> None:
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


def _drop_copies_at_outputs(reading: _Reading) -> None:
    """Let the graph return a tensor itself instead of its copy, where all read it quantized."""
    graph = reading.builder.graph
    for copy in list(reading.outputs):
        source, result = copy.inputs[0], copy.outputs[0]
        producer = source.producer() if source is not None else None
        if source is None or producer is None or source.is_graph_output() or result.uses():
            continue
        uses = [use for use in source.uses() if use.node is not copy]
        quantizer, alone = reading.tensors[result], len(producer.outputs) == 1
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


def _round_weights(reading: _Reading) -> tuple[dict[str, RoundedWeight], dict[str, str]]:
    """Return the integers of each weight, and why others stay in float, both by node."""
    weights: dict[str, RoundedWeight] = {}
    remarks: dict[str, str] = {}
    for node, constant in reading.weights.items():
        rounded = round_weight(constant, patterns.output_axis(node))
        name = str(node.name)
        if isinstance(rounded, str):
            remarks[name] = rounded
        elif 0 not in reading.inputs.get(node, ()):
            remarks[name] = "its training quantizes only its weight"
        elif node.op_type in ("Gemm", "MatMul") and constant.integers.ndim != 2:
            remarks[name] = "its weight is not one matrix"
        else:
            weights[name] = rounded
            if constant.original is not None:  # the float model has the weights of the training
                value = f"{node.name}.weight"
                patterns.set_constant_input(
                    node, 1, reading.builder.names.reserve(value), constant.original
                )
    return weights, remarks
