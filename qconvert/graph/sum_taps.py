"""Adds outputs to a graph: sums over whole tensors, so that no tensor is copied out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

FLOAT, COUNT = ir.DataType.FLOAT, ir.DataType.INT32
PREFIX = "qconvert."


@dataclass
class Taps:
    """A graph that is being tapped, and the outputs that it gets."""

    graph: ir.Graph
    outputs: list[ir.Value] = field(default_factory=list)
    casts: dict[ir.Value, ir.Value] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: ir.Graph) -> "Taps":
        """Start without outputs."""
        return cls(graph)

    def node(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Add a node to the end of the graph and return its only output, without a name."""
        made = ir.node(op, inputs, attributes)
        self.graph.append(made)
        return made.outputs[0]

    def input(self, name: str, like: ir.Value) -> ir.Value:
        """Add an input of float32 with as many dimensions as another tensor."""
        shape = like.shape
        sizes = (
            None if shape is None else [each if isinstance(each, int) else None for each in shape]
        )
        value = ir.Value(
            name=name,
            shape=None if sizes is None else ir.Shape(sizes),
            type=ir.TensorType(FLOAT),
        )
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, kind: ir.DataType = FLOAT) -> str:
        """Make a value an output of the graph under a name."""
        value.name, value.type = name, ir.TensorType(kind)
        self.outputs.append(value)
        return name

    def floats(self, value: ir.Value) -> ir.Value:
        """Return a tensor in float32."""
        if value.dtype is FLOAT:
            return value
        if value not in self.casts:
            self.casts[value] = self.node("Cast", value, to=FLOAT)
        return self.casts[value]

    def squares(self, value: ir.Value, name: str) -> str:
        """Answer with the sum of the squares of a tensor."""
        return self.output(self.node("ReduceSumSquare", value, keepdims=0), PREFIX + name)

    def count_equal(self, integers: ir.Value, wanted: Sequence[int], name: str) -> str:
        """Answer with how many integers are one of those wanted."""
        wide = self.node("Cast", integers, to=COUNT)
        found = [self.node("Equal", wide, self._integer(each)) for each in wanted]
        both = found[0] if len(found) == 1 else self.node("Or", *found)
        return self._count(both, name)

    def count_beyond(self, value: ir.Value, middle: float, reach: float, name: str) -> str:
        """Answer with how many values are further than `reach` from `middle`."""
        far = self.node("Abs", self.node("Sub", value, self._real(middle)))
        return self._count(self.node("Greater", far, self._real(reach)), name)

    def _count(self, found: ir.Value, name: str) -> str:
        ones = self.node("Cast", found, to=COUNT)
        return self.output(self.node("ReduceSum", ones, keepdims=0), PREFIX + name, COUNT)

    def _integer(self, number: int) -> ir.Value:
        return self._constant(np.array(number, np.int32), f"integer.{number}")

    def _real(self, number: float) -> ir.Value:
        return self._constant(np.array(number, np.float32), f"real.{number!r}")

    def _constant(self, array: NDArray[np.generic], what: str) -> ir.Value:
        """Return a stored number, each only once."""
        name = f"{PREFIX}{what}"
        if name not in self.constants:
            tensor = ir.tensor(array, name=name)
            stored = ir.Value(
                name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(stored)
            self.constants[name] = stored
        return self.constants[name]
