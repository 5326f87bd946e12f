"""Q/DQ graphs that training or another tool quantized, read as a float model and its quantizers.

Every tool places QuantizeLinear and DequantizeLinear (Q/DQ) in its own way. `read_qdq` removes them
and returns what they say: the grid of every tensor that a node reads quantized, and the integers of
every weight. From that, `trained_plan` makes a plan for a backend, and `apply_plan` writes the
graph with the same arithmetic and Q/DQ where that backend needs them.

All rewrites are exact. What cannot be read exactly is refused with the names of the nodes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.graph import passes, patterns
from qconvert.quantize.plan import RoundedWeight
from qconvert.quantize.qdq_builder import QDQBuilder
from qconvert.quantize.qdq_moves import (
    drop_copies_at_outputs,
    fold_norms,
    move_behind_activations,
    read_copies,
)
from qconvert.quantize.qdq_reading import QDQReading, Quantizer, insert_behind, is_weight
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
NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax"})
# Behind these a quantizer that clips at zero may stand for a Relu; other operators keep the sign.
RECTIFIED = patterns.WEIGHTED | {"Add", "BatchNormalization"}
MAX_DETAILS = 5
CLIPPED = "activations that only a quantizer clipped"


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


def read_qdq(model: ir.Model) -> TrainedModel:
    """Return the float model and the quantizers of a Q/DQ graph; refuse what cannot be read."""
    _require_readable(model)
    model = model.clone()
    reading = QDQReading(QDQBuilder(model.graph))
    quantizers = sum(node.op_type == "DequantizeLinear" for node in model.graph)
    _remove_from_constants(reading)
    _remove_from_activations(reading)
    _refuse(reading.problems)
    common.RemoveUnusedNodesPass()(model)
    _require_readable(model, also=patterns.QDQ_OPS)
    fold_norms(reading)
    move_behind_activations(reading)
    drop_copies_at_outputs(reading)
    weights, remarks = _round_weights(reading)
    read_copies(reading, remarks)
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


def _remove_from_constants(reading: QDQReading) -> None:
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
            if is_weight(node, slot):
                reading.weights[node] = constant
        if value.is_graph_output():
            reading.problems.append(f"the graph returns the constant `{value.name}`")


# --- activations ---


def _remove_from_activations(reading: QDQReading) -> None:
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


def _dequantizers(reading: QDQReading, node: ir.Node) -> Iterable[tuple[ir.Node | None, ir.Node]]:
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
    reading: QDQReading, node: ir.Node, clip: ir.Node | None, dequantizer: ir.Node
) -> None:
    """Let all that reads a Q/DQ pair read its source quantized."""
    params, source = read_params(node), node.inputs[0]
    assert source is not None, "ONNX requires it"
    shift = {"INT8": 128, "INT4": 128}.get(params.dtype, 0)
    zero_point = int(params.zero_point.flat[0])
    low, high = clip_bounds(clip, params) if clip is not None else (params.low, params.high)
    scale, ends = float(params.scale.flat[0]), (low + shift, high + shift)
    quantizer = Quantizer(scale, zero_point + shift, *ends, signed=shift > 0)
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
            copy = insert_behind(reading, "Identity", [target], f"{target.name}_again")
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


def _place(reading: QDQReading, source: ir.Value, quantizer: Quantizer) -> ir.Value:
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
        clip = insert_behind(reading, "Clip", [source, *limits], f"{source.name}_clipped")
        target = clip.outputs[0]
        kind = "grids of fewer than 256 integers" if low > 0 or high < 255 else CLIPPED
        reading.repairs[kind] += 1
    elif source in reading.tensors or source.is_graph_output():
        target = insert_behind(reading, "Identity", [source], f"{source.name}_copy").outputs[0]
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


def _return_quantized(
    reading: QDQReading, target: ir.Value, quantizer: Quantizer, result: ir.Value
) -> None:
    """Let the graph return a tensor quantized, under the name of the DequantizeLinear's result."""
    outputs = reading.builder.graph.outputs
    copy = insert_behind(reading, "Identity", [target], f"{target.name}_returned")
    value = copy.outputs[0]
    value.shape, value.type = result.shape, result.type
    outputs[:] = [value if output is result else output for output in outputs]
    name, result.name = result.name, reading.builder.names.reserve(f"{result.name}_removed")
    value.name = name
    reading.outputs.add(copy)
    reading.tensors[value] = quantizer


def _round_weights(reading: QDQReading) -> tuple[dict[str, RoundedWeight], dict[str, str]]:
    """Return the integers of each weight, and why others stay in float, both by node."""
    weights: dict[str, RoundedWeight] = {}
    remarks: dict[str, str] = {}
    for node in reading.builder.graph:
        name, constant = str(node.name), reading.weights.get(node)
        if constant is None:
            is_float = is_weight(node, 1) and patterns.constant_array(node.inputs[1]) is not None
            if is_float and 0 in reading.inputs.get(node, ()):
                remarks[name] = "its training quantizes only its input"
            continue
        rounded = round_weight(constant, patterns.output_axis(node))
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
