"""What half precision can hold, and which inputs and outputs of a node may have a half type."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph.patterns import has_subgraph, is_standard

FLOAT = ir.DataType.FLOAT
MAX_FINITE = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
SMALLEST_FLOAT16 = 2.0**-24  # what bfloat16 rounds to zero, float32 nearly does too
# They accept a tensor of any type without computing with it, so they need no Cast.
TYPE_AGNOSTIC = frozenset({"Cast", "Shape", "Size"})
# Type variables that do not follow the others: the attribute `stash_type` sets that of statistics,
# and the bits of a number are those of one type.
FIXED_TYPES = {"LayerNormalization": frozenset({"U"}), "BitCast": frozenset({"T1", "T2"})}
# In the ONNX standard, but refused by TensorRT for RTX 1.7 or (without inputs) by ONNX Runtime.
UNSUPPORTED_BY_ENGINES = {
    ir.DataType.FLOAT16: frozenset(
        {"Celu", "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow"}
    ),
    ir.DataType.BFLOAT16: frozenset(
        {"Celu", "ConvTranspose", "GRU", "GlobalLpPool", "HardSwish", "LpNormalization"}
        | {"LpPool", "MeanVarianceNormalization", "Mish"}
    ),
}


class HalfSlots(NamedTuple):
    """The indices of the float32 inputs and outputs of a node that may have a half type."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class HalfTyping:
    """What the opset of a model allows its nodes to do in one half type."""

    model: ir.Model
    half: ir.DataType

    @property
    def name(self) -> str:
        """The ONNX name of the type."""
        return type_name(self.half)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return onnx_opset(self.model.opset_imports)

    def slots(self, node: ir.Node) -> HalfSlots:
        """Return the inputs and outputs that may be half; none of a node without a schema."""
        schema = self._schema(node)
        if schema is None:
            return HalfSlots()
        spelled = f"tensor({self.name})"
        allowed = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if spelled in constraint.allowed_type_strs
        } - FIXED_TYPES.get(node.op_type, frozenset())
        inputs = () if is_standard(node, *TYPE_AGNOSTIC) else node.inputs
        # The output of a Cast from half to float32 stays: its input is the half tensor.
        source = node.inputs[0] if is_standard(node, "Cast") else None
        outputs = () if source is not None and source.dtype is self.half else node.outputs
        return HalfSlots(
            tuple(i for i, kind in _float32_slots(inputs, schema.inputs) if kind in allowed),
            tuple(i for i, kind in _float32_slots(outputs, schema.outputs) if kind in allowed),
        )

    def reason_to_refuse(self, node: ir.Node) -> str:
        """Say why no part of a float32 node can be half; empty if some part can."""
        if node.op_identifier() in self.model.functions or has_subgraph(node):
            return "it holds a graph of its own"
        if self._schema(node) is None:
            full_name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            return f"the input and output types of `{full_name}` are unknown"
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and not isinstance(value.type, ir.TensorType):
                return f"`{value.name}` is not a tensor, or its type is unknown"
        if node.op_type in UNSUPPORTED_BY_ENGINES[self.half]:
            return f"engines have no {self.name} `{node.op_type}`"
        possible = any(self.slots(node)) or node.op_type in TYPE_AGNOSTIC
        return "" if possible else f"`{node.op_type}` has no {self.name} in opset {self.opset}"

    def set_type_attributes(self, node: ir.Node) -> None:
        """Set to half what makes the node output float32: an attribute, its default, a value."""
        schema = self._schema(node)
        attributes = schema.attributes if schema is not None else {}
        for name in ("to", "dtype", "output_datatype", "output_dtype"):
            default = attributes[name].default_value.i if name in attributes else None
            if default is not None and node.attributes.get_int(name, default) == FLOAT:
                node.attributes.add(ir.AttrInt64(name, self.half))
        if is_standard(node, "ConstantOfShape"):
            value = cast_to_half(fill_value(node).numpy(), self.half)
            node.attributes.add(ir.AttrTensor("value", ir.tensor(value)))

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        if not is_standard(node):
            return None
        try:
            return onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return None


def _float32_slots(
    values: Sequence[ir.Value | None], formals: Sequence[onnx.defs.OpSchema.FormalParameter]
) -> Iterator[tuple[int, str]]:
    """Yield the index of each float32 tensor and the type variable of its slot."""
    for index, value in enumerate(values):
        if is_float32(value):
            # The last slot of a variadic operator takes all remaining values.
            yield index, formals[min(index, len(formals) - 1)].type_str


def type_name(half: ir.DataType) -> str:
    """Return the ONNX name of a type."""
    return half.name.lower()


def onnx_opset(imports: Mapping[str, int]) -> int:
    """Return the opset of ONNX's own operators, 0 where there are none."""
    return imports.get("", imports.get("ai.onnx", 0))


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of float32."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype is FLOAT


def fill_value(node: ir.Node) -> ir.TensorProtocol:
    """Return the tensor that a `ConstantOfShape` repeats."""
    value = node.attributes.get("value")
    return ir.tensor([0.0], dtype=FLOAT) if value is None else value.as_tensor()


def largest_magnitude(array: NDArray[np.generic]) -> float:
    """Return the largest finite magnitude of an array."""
    if array.size == 0:
        return 0.0
    largest = max(abs(float(array.max())), abs(float(array.min())))
    if math.isfinite(largest):
        return largest
    finite = array[np.isfinite(array.astype(np.float32))]
    return float(np.abs(finite).max(initial=0.0))


def cast_to_half(array: NDArray[np.generic], half: ir.DataType) -> NDArray[np.generic]:
    """Return an array in half precision, its finite values clamped to the range of the type."""
    limit = MAX_FINITE[half]
    if largest_magnitude(array) > limit:
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    cast: NDArray[np.generic] = array.astype(half.numpy())
    if array.size == 1 and array.any() and not cast.any():
        # A single number is an epsilon that prevents division by zero, so it must not become 0.
        cast[...] = SMALLEST_FLOAT16 if array.max() > 0 else -SMALLEST_FLOAT16
    return cast
