"""Which float32 tensors of a node may be half precision: what its schema says, slot by slot."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph.patterns import is_standard

MAX_FINITE = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}

SMALLEST_FLOAT16 = 2.0**-24  # in float16; what bfloat16 rounds to zero, float32 nearly does

TYPE_NAMES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
# They read a tensor of any type without computing with it: no Cast is worth it.
TYPE_AGNOSTIC = frozenset({"Cast", "Shape", "Size"})
# Types that do not follow: that of statistics is named by the attribute `stash_type`, and the bits
# of a number are those of one type.
FIXED_TYPES = {"LayerNormalization": frozenset({"U"}), "BitCast": frozenset({"T1", "T2"})}
# The attributes that name the type of what comes out.
TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")
# ONNX has them, but TensorRT for RTX 1.7 refuses them, or ONNX Runtime those that read nothing.
UNSUPPORTED_BY_ENGINES = {
    ir.DataType.FLOAT16: frozenset(
        {"Celu", "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow"}
    ),
    ir.DataType.BFLOAT16: frozenset(
        {"Celu", "ConvTranspose", "GRU", "GlobalLpPool", "HardSwish", "LpNormalization"}
        | {"LpPool", "MeanVarianceNormalization", "Mish"}
    ),
}
HAS_SUBGRAPH = "it holds a graph of its own"


@dataclass(frozen=True)
class HalfSlots:
    """The places of those float32 inputs and outputs of a node that its schema lets be half."""

    inputs: frozenset[int]
    outputs: frozenset[int]


NO_SLOTS = HalfSlots(frozenset(), frozenset())


@dataclass(frozen=True)
class HalfTyping:
    """What the opsets of a model let its nodes do in one type of half precision."""

    model: ir.Model
    half: ir.DataType

    @property
    def name(self) -> str:
        """How ONNX spells the type."""
        return TYPE_NAMES[self.half]

    @property
    def opset(self) -> int:
        """Which version of ONNX's own operators the model has."""
        return onnx_opset(self.model.opset_imports)

    def slots(self, node: ir.Node) -> HalfSlots:
        """Return what may be half; nothing of a node whose schema is not known."""
        schema = self._schema(node)
        if schema is None:
            return NO_SLOTS
        inputs = list(_float32_slots(node.inputs, schema.inputs))
        outputs = list(_float32_slots(node.outputs, schema.outputs))
        allowed = self._allowed(schema) - FIXED_TYPES.get(node.op_type, frozenset())
        taken = [] if is_standard(node, *TYPE_AGNOSTIC) else inputs
        made = [] if self.widens_to_float32(node) else outputs
        return HalfSlots(
            frozenset(place for place, variable in taken if variable in allowed),
            frozenset(place for place, variable in made if variable in allowed),
        )

    def widens_to_float32(self, node: ir.Node) -> bool:
        """Whether a node makes float32 of this half precision: what was before it is the half."""
        source = node.inputs[0] if is_standard(node, "Cast") else None
        return source is not None and source.dtype is self.half

    def reason_to_refuse(self, node: ir.Node) -> str:
        """Say why nothing of a node that handles float32 can be half; empty where something can."""
        if node.op_identifier() in self.model.functions or any(_subgraph_attributes(node)):
            return HAS_SUBGRAPH
        if self._schema(node) is None:
            return f"what `{_full_name(node)}` takes and makes is not known"
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        strange = [
            each for each in values if each.name and not isinstance(each.type, ir.TensorType)
        ]
        if strange:
            return f"`{strange[0].name}` is not a tensor, or its type is not known"
        if node.op_type in UNSUPPORTED_BY_ENGINES[self.half]:
            return f"engines have no {self.name} `{node.op_type}`"
        slots = self.slots(node)
        possible = slots.inputs or slots.outputs or node.op_type in TYPE_AGNOSTIC
        return "" if possible else f"`{node.op_type}` has no {self.name} in opset {self.opset}"

    def type_attributes(self, node: ir.Node) -> list[str]:
        """Return the attributes, set or not, that say that a node makes float32."""
        schema = self._schema(node)
        given = schema.attributes if schema is not None else {}
        return [
            name for name in TYPE_ATTRIBUTES if name in given and _names_float32(node, given[name])
        ]

    def _allowed(self, schema: onnx.defs.OpSchema) -> frozenset[str]:
        spelled = f"tensor({self.name})"
        return frozenset(
            each.type_param_str
            for each in schema.type_constraints
            if spelled in each.allowed_type_strs
        )

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        if not is_standard(node):
            return None
        try:
            return onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return None


def onnx_opset(imports: Mapping[str, int]) -> int:
    """Return the opset of ONNX's own operators, 0 where there are none."""
    return imports.get("", imports.get("ai.onnx", 0))


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of float32."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype is ir.DataType.FLOAT
    )


def handles_float32(node: ir.Node) -> bool:
    """Whether a node computes with float32 tensors, or with what may be one."""
    read = () if is_standard(node, *TYPE_AGNOSTIC) else node.inputs
    values = [value for value in (*read, *node.outputs) if value is not None and value.name]
    return any(value.type is None or value.dtype is ir.DataType.FLOAT for value in values) or any(
        _subgraph_attributes(node)
    )


def fill_value(node: ir.Node) -> ir.TensorProtocol:
    """Return what a `ConstantOfShape` repeats."""
    value = node.attributes.get("value")
    return ir.tensor([0.0], dtype=ir.DataType.FLOAT) if value is None else value.as_tensor()


def _float32_slots(
    values: Sequence[ir.Value | None],
    formals: Sequence[onnx.defs.OpSchema.FormalParameter],
) -> Iterator[tuple[int, str]]:
    """Yield the place of each float32 tensor and the name of the type its slot has."""
    for place, value in enumerate(values):
        if is_float32(value):
            # The last slot of a variadic operator takes all that are left.
            yield place, formals[min(place, len(formals) - 1)].type_str


def _subgraph_attributes(node: ir.Node) -> Iterator[str]:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    yield from (each.name for each in node.attributes.values() if each.type in kinds)


def _names_float32(node: ir.Node, given: onnx.defs.OpSchema.Attribute) -> bool:
    named: int = node.attributes.get_int(given.name, given.default_value.i)
    return named == ir.DataType.FLOAT


def _full_name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def largest_magnitude(array: NDArray[np.generic]) -> float:
    """Return the largest magnitude of an array, leaving out what is not finite."""
    if array.size == 0:
        return 0.0
    top = max(abs(float(array.max())), abs(float(array.min())))
    if math.isfinite(top):
        return top
    finite = array[np.isfinite(array.astype(np.float32))]
    return float(np.abs(finite).max()) if finite.size else 0.0


def cast_to_half(array: NDArray[np.generic], half: ir.DataType) -> NDArray[np.generic]:
    """Return an array in half precision; what is finite stays so, and a lone number is not 0."""
    if largest_magnitude(array) > MAX_FINITE[half]:
        array = np.where(
            np.isfinite(array), np.clip(array, -MAX_FINITE[half], MAX_FINITE[half]), array
        )
    rounded: NDArray[np.generic] = array.astype(half.numpy())
    if array.size == 1 and array.any() and not rounded.any():
        # An epsilon keeps from dividing by zero: the least number does so too.
        rounded[...] = SMALLEST_FLOAT16 if array.max() > 0 else -SMALLEST_FLOAT16
    return rounded
