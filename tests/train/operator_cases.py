"""Nodes with the attributes that matter, for every operator that can be trained through."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.train.resize import COORDINATES
from tests.models import floats

Array = NDArray[Any]
IMAGE = floats(2, 4, 7, 6)
POSITIVE = np.abs(floats(3, 5)) + np.float32(0.5)


@dataclass(frozen=True)
class Case:
    """A node on its inputs, None for one that is left out.

    `smooth` is off where a gradient does not exist, or is 0 almost everywhere.
    """

    op: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    smooth: bool = True

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.op} {self.opset}({values})"


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def scales(*values: float) -> Array:
    return np.array(values, np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def cases() -> Iterator[Case]:
    """Yield all cases."""
    yield from _convolutions()
    yield from _pools()
    yield from _products()
    yield from _normalizations()
    yield from _elementwise()
    yield from _activations()
    yield from _reductions()
    yield from _places()
    yield from _slices()
    yield from _paddings()
    yield from _resizes()
    yield from _values()


def _convolutions() -> Iterator[Case]:
    weight, bias = floats(6, 4, 3, 3, seed=1), floats(6, seed=2)
    for attributes in (
        {},
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 1, 2, 1], "dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
        {"kernel_shape": [3, 3], "auto_pad": "NOTSET", "pads": [2, 0, 2, 0]},
    ):
        yield Case("Conv", (IMAGE, weight, bias), attributes)
    yield Case("Conv", (IMAGE, floats(8, 2, 3, 3)), {"group": 2})
    yield Case("Conv", (IMAGE, floats(4, 1, 3, 2)), {"group": 4, "pads": [1, 0, 1, 1]})
    yield Case("Conv", (floats(2, 3, 9), floats(5, 3, 4)), {"pads": [1, 2], "strides": [2]})
    yield Case("Conv", (floats(1, 2, 5, 5, 5), floats(3, 2, 3, 3, 3)), {"pads": [1] * 6})
    small, up = floats(2, 4, 3, 4), floats(4, 3, 3, 3, seed=1)
    for attributes in (
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 3], "pads": [0, 1, 1, 0]},
        {"strides": [2, 2], "pads": [0, 0, 2, 1], "output_padding": [1, 0]},
        {"dilations": [2, 2], "pads": [1, 2, 1, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [3, 2], "auto_pad": "VALID"},
        {"strides": [2, 2], "output_shape": [6, 8]},
        {"strides": [2, 2], "output_shape": [5, 6], "output_padding": [1, 1]},
        {"pads": [2, 0, 0, 1]},
        {"strides": [2, 2], "output_shape": [6, 7], "auto_pad": "SAME_UPPER"},
    ):
        yield Case("ConvTranspose", (small, up, floats(3)), attributes)
    yield Case("ConvTranspose", (small, floats(4, 3, 2, 2)), {"group": 2, "strides": [2, 2]})
    yield Case("ConvTranspose", (floats(2, 3, 5), floats(3, 2, 4)), {"strides": [2]})


def _pools() -> Iterator[Case]:
    for attributes in (
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ):
        yield Case("MaxPool", (IMAGE,), attributes)
        yield Case("AveragePool", (IMAGE,), attributes)
        yield Case("AveragePool", (IMAGE,), {**attributes, "count_include_pad": 1})
    yield Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 3], "dilations": [2, 2]})
    yield Case("MaxPool", (floats(2, 3, 9),), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]})
    yield Case("AveragePool", (floats(2, 3, 9),), {"kernel_shape": [4], "pads": [2, 1]})
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield Case(op, (IMAGE,))
        yield Case(op, (floats(2, 3, 5),))


def _products() -> Iterator[Case]:
    yield Case("Gemm", (floats(3, 4), floats(4, 5), floats(5)))
    yield Case("Gemm", (floats(3, 4), floats(5, 4), floats(5)), {"transB": 1})
    yield Case("Gemm", (floats(4, 3), floats(4, 5)), {"transA": 1, "alpha": 0.5})
    yield Case("Gemm", (floats(3, 4), floats(4, 5), floats(3, 1)), {"alpha": 2.0, "beta": 0.25})
    yield Case("Gemm", (floats(3, 4), floats(4, 5), scalar(0.5)))
    yield Case("MatMul", (floats(3, 4), floats(4, 5)))
    yield Case("MatMul", (floats(2, 3, 4, 5), floats(3, 5, 2)))
    yield Case("MatMul", (floats(5), floats(2, 5, 3)))


def _normalizations() -> Iterator[Case]:
    weight, bias = floats(6, seed=1), floats(6, seed=2)
    yield Case("LayerNormalization", (IMAGE, weight, bias))
    yield Case("LayerNormalization", (IMAGE, weight), {"epsilon": 0.1})
    whole = floats(7, 6), floats(7, 6, seed=1)
    yield Case("LayerNormalization", (IMAGE, *whole), {"axis": 2})
    yield Case("LayerNormalization", (IMAGE, weight, bias), {"axis": -2})
    yield Case("RMSNormalization", (IMAGE, weight), {"epsilon": 1e-3}, opset=23)
    yield Case("RMSNormalization", (IMAGE, floats(7, 6)), {"axis": -2}, opset=23)
    four = floats(4), floats(4, seed=1), floats(4, seed=2), np.abs(floats(4, seed=3))
    yield Case("BatchNormalization", (IMAGE, *four))
    yield Case("BatchNormalization", (floats(3, 4), *four), {"epsilon": 0.01})
    yield Case("InstanceNormalization", (IMAGE, *four[:2]), {"epsilon": 1e-3})
    yield Case("GroupNormalization", (IMAGE, *four[:2]), {"num_groups": 2}, opset=21)
    yield Case("GroupNormalization", (IMAGE, *(a[:2] for a in four[:2])), {"num_groups": 2}, 20)


def _elementwise() -> Iterator[Case]:
    x, y = floats(3, 1, 5), floats(4, 1, seed=1)
    whole = np.array([[7, -7, 5], [-5, 6, 4]], np.int64), np.array([2, 2, -3], np.int64)
    for op in ("Add", "Sub", "Mul", "Div"):
        yield Case(op, (x, y))
        yield Case(op, whole, smooth=False)
    for op in ("Min", "Max", "Sum", "Mean"):
        yield Case(op, (x, y, floats(5, seed=2)))
        yield Case(op, (x,))
    yield Case("Pow", (POSITIVE, scalar(1.5)))
    yield Case("Pow", (floats(3, 5), np.array(2, np.int64)))
    for op in ("Sqrt", "Log", "Reciprocal"):
        yield Case(op, (POSITIVE,))
    for op in ("Exp", "Neg", "Abs", "Erf", "Sin", "Cos"):
        yield Case(op, (floats(3, 5),))
    halves = np.array([-2.5, -1.5, -0.5, 0.0, 0.4, 0.5, 1.5, 2.5], np.float32)
    for op in ("Floor", "Ceil", "Sign", "Round"):
        yield Case(op, (halves,), smooth=False)
    numbers = np.array([0, 1, 2, 3], np.int64), np.array([[0], [2]], np.int64)
    flags = (np.array([True, False, True]), np.array([[True], [False]]))
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        yield Case(op, numbers, smooth=False)
        yield Case(op, (halves, scalar(0.5)), smooth=False)
    for op in ("And", "Or"):
        yield Case(op, flags, smooth=False)
    yield Case("Not", flags[:1], smooth=False)
    yield Case("Where", (np.array([True, False]), floats(3, 2), floats(3, 1, seed=1)))
    yield Case("Mod", whole, smooth=False)
    yield Case("Mod", (whole[0].astype(np.float32), scalar(3.5)), {"fmod": 1}, smooth=False)


def _activations() -> Iterator[Case]:
    x = floats(3, 4, 5) * 4
    for op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Softplus"):
        yield Case(op, (x,))
    for op in ("LeakyRelu", "Elu"):
        yield Case(op, (x,))
        yield Case(op, (x,), {"alpha": 0.3})
    yield Case("PRelu", (x, floats(4, 1)))
    yield Case("HardSigmoid", (x,))
    yield Case("HardSigmoid", (x,), {"alpha": 0.1667, "beta": 0.4})
    yield Case("Gelu", (x,))
    yield Case("Gelu", (x,), {"approximate": "tanh"})
    yield Case("Clip", (x, scalar(0), scalar(6)))
    yield Case("Clip", (x, None, scalar(1)))
    yield Case("Clip", (x, scalar(-1)))
    yield Case("Clip", (x,))
    yield Case("Clip", (np.arange(9), np.array(2), np.array(5)), smooth=False)
    for op in ("Softmax", "LogSoftmax"):
        yield Case(op, (x,))
        yield Case(op, (x,), {"axis": 1})


def _reductions() -> Iterator[Case]:
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"):
        yield Case(op, (IMAGE,))
        yield Case(op, (IMAGE,), {"keepdims": 0})
        yield Case(op, (IMAGE, integers(2, -1)))
        yield Case(op, (IMAGE, integers(1)), {"keepdims": 0})
        yield Case(op, (IMAGE, integers()), {"noop_with_empty_axes": 1})
        if op != "ReduceSum":
            yield Case(op, (IMAGE,), {"axes": [-2, -1], "keepdims": 0}, opset=13)
    yield Case("ArgMax", (IMAGE,), smooth=False)
    yield Case("ArgMax", (IMAGE,), {"axis": -1, "keepdims": 0}, smooth=False)
    yield Case("TopK", (floats(3, 8), integers(3)), outputs=2)
    yield Case("TopK", (IMAGE, integers(2)), {"axis": 1, "largest": 0}, outputs=2)


def _places() -> Iterator[Case]:
    yield Case("Concat", (IMAGE, floats(2, 1, 7, 6)), {"axis": 1})
    yield Case("Concat", (IMAGE, IMAGE), {"axis": -1})
    yield Case("Split", (IMAGE, integers(1, 3)), {"axis": 1}, outputs=2)
    yield Case("Split", (IMAGE,), {"axis": 1}, opset=13, outputs=2)
    yield Case("Split", (IMAGE,), {"axis": 2, "num_outputs": 2}, outputs=2)
    yield Case("Split", (IMAGE,), {"axis": -2, "num_outputs": 3}, outputs=3)
    yield Case("Reshape", (IMAGE, integers(0, -1, 3)))
    yield Case("Reshape", (floats(0, 4), integers(4, 0)), {"allowzero": 1})
    yield Case("Reshape", (IMAGE, integers(-1, 42)))
    for axis in (0, 1, 2, -1):
        yield Case("Flatten", (IMAGE,), {"axis": axis})
    yield Case("Transpose", (IMAGE,))
    yield Case("Transpose", (IMAGE,), {"perm": [0, 2, 3, 1]})
    yield Case("Squeeze", (floats(1, 3, 1, 2),))
    yield Case("Squeeze", (floats(1, 3, 1, 2), integers(-2)))
    yield Case("Unsqueeze", (floats(3, 2), integers(0, -1)))
    yield Case("Unsqueeze", (floats(3, 2), integers(3, 1)))
    yield Case("Gather", (IMAGE, integers(1, -1)), {"axis": 1})
    yield Case("Gather", (IMAGE, np.array(0)), {"axis": 2})
    yield Case("Gather", (IMAGE, np.array([[0, 2], [1, -1]])), {"axis": -1})
    yield Case("GatherElements", (floats(2, 3), np.array([[0, -1], [2, 1]])), {"axis": 1})
    yield Case("Expand", (floats(3, 1), integers(2, 1, 4)))
    yield Case("Expand", (floats(2, 3, 4), integers(3, 1)))
    yield Case("Tile", (floats(2, 3), integers(2, 1)))
    yield Case("Tile", (floats(2, 3), integers(1, 3)))
    for mode in ("DCR", "CRD"):
        yield Case("DepthToSpace", (floats(2, 12, 3, 2),), {"blocksize": 2, "mode": mode})
    yield Case("SpaceToDepth", (floats(2, 3, 6, 4),), {"blocksize": 2})
    yield Case("Identity", (IMAGE,))
    yield Case("Dropout", (IMAGE, scalar(0.3)))
    products = (("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("nchw,ck->nkhw", (2, 4, 3, 3), (4, 5)))
    for equation, first, second in products:
        yield Case("Einsum", (floats(*first), floats(*second)), {"equation": equation})


def _slices() -> Iterator[Case]:
    yield Case("Slice", (IMAGE, integers(1, 2), integers(2, 5)))
    yield Case("Slice", (IMAGE, integers(0), integers(2**62), integers(1), integers(2)))
    yield Case("Slice", (IMAGE, integers(-3), integers(-1), integers(-1)))
    yield Case("Slice", (IMAGE, integers(-1), integers(-(2**62)), integers(3), integers(-1)))
    yield Case("Slice", (IMAGE, integers(5, 0), integers(0, 9), integers(2, 3), integers(-2, 4)))
    yield Case("Slice", (IMAGE, integers(-99), integers(3), integers(2)))
    yield Case("Slice", (IMAGE, integers(99), integers(1), integers(2), integers(-1)))


def _paddings() -> Iterator[Case]:
    yield Case("Pad", (IMAGE, integers(0, 0, 1, 2, 0, 0, 3, 0)))
    yield Case("Pad", (IMAGE, integers(1, 0, 0, 2, 0, 1, 0, 0), scalar(0.5)))
    yield Case("Pad", (IMAGE, integers(0, 0, -1, 0, 0, 0, 2, -2)))
    yield Case("Pad", (IMAGE, integers(1, 2), None, integers(-1)))
    yield Case("Pad", (floats(3, 4), integers(0, 1, 1, 0)))
    for mode in ("edge", "reflect"):
        yield Case("Pad", (IMAGE, integers(0, 0, 1, 2, 0, 0, 3, 1)), {"mode": mode})
        yield Case("Pad", (IMAGE, integers(1, 2, 0, 1), None, integers(3, 2)), {"mode": mode})
        yield Case("Pad", (IMAGE, integers(0, 1, 0, 0, 0, 2, 0, 0)), {"mode": mode})
        yield Case("Pad", (floats(3, 4), integers(1, 0, 0, 2)), {"mode": mode})
        yield Case("Pad", (floats(2, 3, 5), integers(0, 0, 2, 0, 0, 1)), {"mode": mode})
    yield Case("Pad", (IMAGE, integers(0, 0, 2, 1, 0, 0, 1, 3)), {"mode": "wrap"}, opset=19)


def _resizes() -> Iterator[Case]:
    doubled, other = scales(1, 1, 2, 2), integers(2, 4, 5, 9)
    for coordinates in COORDINATES:
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            names = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
            yield Case("Resize", (IMAGE, None, doubled), names)
            yield Case("Resize", (IMAGE, None, scales(1, 1, 0.5, 0.5)), names)
            yield Case("Resize", (IMAGE, None, None, other), names)
        for mode in ("linear", "cubic"):
            names = {"coordinate_transformation_mode": coordinates, "mode": mode}
            yield Case("Resize", (IMAGE, None, doubled), names)
            yield Case("Resize", (IMAGE, None, scales(1, 1, 1.7, 0.6)), names)
            yield Case("Resize", (IMAGE, None, None, other), names)
    yield Case("Resize", (IMAGE, None, scales(2, 3)), {"axes": [2, 3]})
    yield Case("Resize", (IMAGE, None, None, integers(3, 12)), {"axes": [3, 2]})
    linear = {"mode": "linear"}
    yield Case("Resize", (floats(2, 3, 5), None, scales(1, 1, 2.5)), linear)
    yield Case("Resize", (IMAGE, None, None, integers(1, 1)), {**linear, "axes": [2, 3]})
    yield Case("Resize", (floats(5, 6), None, scales(2, 2)), linear)
    cubic = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}
    yield Case("Resize", (IMAGE, None, doubled), cubic)


def _values() -> Iterator[Case]:
    yield Case("Shape", (IMAGE,), smooth=False)
    yield Case("Shape", (IMAGE,), {"start": 1, "end": -1}, smooth=False)
    yield Case("Size", (IMAGE,), smooth=False)
    yield Case("Cast", (floats(3, 5) * 4,), {"to": ir.DataType.INT64.value}, smooth=False)
    yield Case("Cast", (np.array([0, 1, 2]),), {"to": ir.DataType.FLOAT.value}, smooth=False)
    yield Case("Cast", (floats(3, 5),), {"to": ir.DataType.BOOL.value}, smooth=False)
    yield Case("Constant", (), {"value": ir.tensor(floats(2, 3))}, smooth=False)
    yield Case("Constant", (), {"value_ints": [1, 2]}, smooth=False)
    yield Case("Constant", (), {"value_float": 0.5}, smooth=False)
    filled = {"value": ir.tensor(np.array([3], np.int64))}
    yield Case("ConstantOfShape", (integers(2, 3),), smooth=False)
    yield Case("ConstantOfShape", (integers(2),), filled, smooth=False)
    yield Case("Range", (np.array(5), np.array(-2), np.array(-2)), smooth=False)
    yield Case("Range", (scalar(0.5), scalar(4), scalar(0.75)), smooth=False)
    yield Case("CumSum", (floats(3, 4), np.array(1)))
    yield Case("CumSum", (floats(3, 4), np.array(0)), {"exclusive": 1, "reverse": 1})
