"""ONNX operators as torch functions: one table, from the operator to a function of its attributes.

A function takes the attributes of the node as a dictionary, and its inputs: None for one that is
left out. It returns one tensor, or a tuple for several outputs. Those that hold only on some
attributes have a line in `CHECKS`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.graph import patterns
from qconvert.train.convolutions import (
    average_pool,
    check_average_pool,
    conv,
    conv_transpose,
    max_pool,
)
from qconvert.train.resize import check_resize, resize

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]

TORCH_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
}

# Softmax and others meant something else before.
OLDEST_OPSET = 13


def require_operators(model: ir.Model) -> None:
    """Refuse a model with operators that are not in the table, and name them."""
    if (opset := model.opset_imports.get("", 0)) < OLDEST_OPSET:
        raise QConvertError(
            f"this network cannot be trained: its operators are of opset {opset}, before "
            f"{OLDEST_OPSET}",
            hint="quantize it without training: `--effort thorough`",
        )
    missing: dict[str, str] = {}
    for node in onnx_io.all_nodes(model):
        if reason := find_obstacle(node):
            missing.setdefault(reason, node.name or "")
    if missing:
        raise QConvertError(
            "this network cannot be trained: some of its operators have no gradient here",
            details=[f"{reason}, as `{name}`" for reason, name in missing.items()][:8],
            hint="quantize it without training: `--effort thorough`",
        )


def find_obstacle(node: ir.Node) -> str:
    """Return why a node cannot be trained through, empty if it can."""
    if patterns.has_subgraph(node):
        return f"{node.op_type} holds a graph of its own"
    if node.op_type not in OPERATORS or not patterns.is_standard(node):
        domain = "" if patterns.is_standard(node) else f"{node.domain}."
        return f"{domain}{node.op_type}"
    check = CHECKS.get(node.op_type)
    return check(read_attributes(node)) if check is not None else ""


def read_attributes(node: ir.Node) -> dict[str, Any]:
    """Return the attributes of a node as plain values, tensors as torch tensors."""
    values: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type is ir.AttributeType.TENSOR:
            value = torch.from_numpy(value.numpy().copy())
        elif isinstance(value, tuple):
            value = list(value)
        values[name] = value
    return values


def _integers(tensor: Tensor | Sequence[int] | None) -> list[int]:
    if tensor is None:
        return []
    return [
        int(number)
        for number in (tensor.flatten().tolist() if isinstance(tensor, Tensor) else tensor)
    ]


# --- products, normalization and activation ---


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Any:
    a = a.mT if attributes.get("transA", 0) else a
    b = b if attributes.get("transB", 0) else b.mT
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and c is not None and c.dim() == 1:
        return functional.linear(a, b, c)
    y = functional.linear(a, b) * alpha
    return y if c is None else y + beta * c


def _layer_norm(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    shape = x.shape[axis:]
    epsilon = attributes.get("epsilon", 1e-5)
    if weight.shape == shape:
        return functional.layer_norm(x, shape, weight, bias, epsilon)
    y = functional.layer_norm(x, shape, eps=epsilon) * weight
    return y if bias is None else y + bias


def _rms_norm(attributes: Attributes, x: Tensor, weight: Tensor) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    return functional.rms_norm(x, x.shape[axis:], eps=attributes.get("epsilon", 1e-5)) * weight


def _batch_norm(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, weight, bias, eps=epsilon)


def _instance_norm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.instance_norm(x, weight=weight, bias=bias, eps=epsilon)


def _group_norm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = attributes["num_groups"], attributes.get("epsilon", 1e-5)
    if weight.numel() != x.shape[1]:  # before opset 21 they are of groups
        weight, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (weight, bias))
    return functional.group_norm(x, groups, weight, bias, epsilon)


def _clip(
    _: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    bottom, top = (limit.item() if limit is not None else None for limit in (low, high))
    if bottom is None and top is None:
        return x
    if bottom is not None and top is not None and x.is_floating_point():
        return functional.hardtanh(x, bottom, top)
    return x.clamp(bottom, top)


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attributes.get("approximate", "none"))


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Any:
    return (x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5)).clamp(0.0, 1.0)


# --- shapes and places ---


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    keeps_zeros = bool(attributes.get("allowzero", 0))
    sizes = [
        x.shape[axis] if size == 0 and not keeps_zeros else size
        for axis, size in enumerate(_integers(shape))
    ]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm") or list(range(x.dim()))[::-1])


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _integers(axes if axes is not None else attributes.get("axes"))
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _integers(axes if axes is not None else attributes.get("axes"))
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _slice(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begins = _integers(starts if starts is not None else attributes["starts"])
    stops = _integers(ends if ends is not None else attributes["ends"])
    chosen = _integers(axes if axes is not None else attributes.get("axes"))
    strides = _integers(steps) or [1] * len(begins)
    for begin, stop, axis, stride in zip(
        begins, stops, chosen or range(len(begins)), strides, strict=True
    ):
        places = range(x.shape[axis])[begin:stop:stride]
        if stride > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(begin, stop, stride),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    rows = torch.where(indices < 0, indices + x.shape[axis], indices)
    y = x.index_select(axis, rows.reshape(-1).to(x.device))
    return y.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    chosen = _integers(sizes if sizes is not None else attributes.get("split"))
    count = attributes.get("num_outputs") or attributes["outputs"]
    return torch.split(x, chosen or -(-x.shape[axis] // count), axis)


def _expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = torch.broadcast_shapes(x.shape, tuple(_integers(shape)))  # type: ignore[no-untyped-call]
    return x.expand(sizes)


def _tile(_: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_integers(repeats))


def _pad(
    attributes: Attributes,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    sides = _integers(pads if pads is not None else attributes["pads"])
    chosen = [axis % x.dim() for axis in _integers(axes)] or list(range(x.dim()))
    count = len(chosen)
    mode = attributes.get("mode", "constant")
    filler = float(value) if value is not None else attributes.get("value", 0.0)
    by_axis = dict(zip(chosen, zip(sides[:count], sides[count:], strict=True), strict=True))
    if mode == "constant":
        flat = [side for axis in reversed(range(x.dim())) for side in by_axis.get(axis, (0, 0))]
        return functional.pad(x, flat, value=filler)
    for axis, (before, after) in by_axis.items():
        if before or after:
            places = torch.arange(-before, x.shape[axis] + after, device=x.device)
            x = x.index_select(axis, PAD_MODES[mode](places, x.shape[axis]))
    return x


def _reflect(places: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - places.abs()).abs()


# From the places in the padded tensor, and its size, to those that are read.
PAD_MODES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "edge": lambda places, size: places.clamp(0, size - 1),
    "wrap": lambda places, size: places % size,
    "reflect": _reflect,
}


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = attributes["blocksize"], x.shape
    if attributes.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = attributes["blocksize"], x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    sizes = list(x.shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    return x.to(TORCH_TYPES[ir.DataType(attributes["to"])])


def _constant(attributes: Attributes) -> Tensor:
    for name, value in attributes.items():
        if name == "value":
            tensor: Tensor = value
            return tensor
        return torch.tensor(value, dtype=torch.int64 if "int" in name else torch.float32)
    raise ValueError("a Constant has a value")


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value = attributes.get("value", torch.zeros(1))
    return torch.full(_integers(shape), value.item(), dtype=value.dtype)


def _range(_: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _modulo(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if attributes.get("fmod", 0) else torch.remainder(x, y)


def _cumulative_sum(attributes: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    place, backwards = int(axis), bool(attributes.get("reverse", 0))
    y = x.flip(place).cumsum(place) if backwards else x.cumsum(place)
    y = y.flip(place) if backwards else y
    return y - x if attributes.get("exclusive", 0) else y


def _divide(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    integral = not (x.is_floating_point() or y.is_floating_point())
    return torch.div(x, y, rounding_mode="trunc" if integral else None)


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _integers(axes if axes is not None else attributes.get("axes"))
        if not chosen and attributes.get("noop_with_empty_axes", 0):
            return function(x.unsqueeze(-1), [-1], False)  # of every value alone
        return function(x, chosen or list(range(x.dim())), bool(attributes.get("keepdims", 1)))

    return reduce


def _global_pool(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    return lambda _, x: function(x, list(range(2, x.dim())), True)


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda _, *inputs: function(*inputs)


def _mean(_: Attributes, *inputs: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*inputs)).mean(0)  # type: ignore[no-untyped-call]


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def fold(_: Attributes, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return fold


def _arg_max(attributes: Attributes, x: Tensor) -> Tensor:
    return x.argmax(attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))


def _top_k(attributes: Attributes, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))
    values, indices = x.topk(int(count), axis, largest)
    return values, indices


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": _gemm,
    "MatMul": _elementwise(torch.matmul),
    "Einsum": lambda attributes, *inputs: torch.einsum(attributes["equation"], *inputs),
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _divide,
    "Pow": _elementwise(torch.pow),
    "Sum": _fold(torch.add),
    "Mean": _mean,
    "Mod": _modulo,
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Sqrt": _elementwise(torch.sqrt),
    "Exp": _elementwise(torch.exp),
    "Log": _elementwise(torch.log),
    "Neg": _elementwise(torch.neg),
    "Abs": _elementwise(torch.abs),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Erf": _elementwise(torch.erf),
    "Sin": _elementwise(torch.sin),
    "Cos": _elementwise(torch.cos),
    "Floor": _elementwise(torch.floor),
    "Ceil": _elementwise(torch.ceil),
    "Round": _elementwise(torch.round),
    "Sign": _elementwise(torch.sign),
    "Not": _elementwise(torch.logical_not),
    "And": _elementwise(torch.logical_and),
    "Or": _elementwise(torch.logical_or),
    "Equal": _elementwise(torch.eq),
    "Less": _elementwise(torch.lt),
    "LessOrEqual": _elementwise(torch.le),
    "Greater": _elementwise(torch.gt),
    "GreaterOrEqual": _elementwise(torch.ge),
    "Where": _elementwise(torch.where),
    "Relu": _elementwise(functional.relu),
    "LeakyRelu": lambda attributes, x: functional.leaky_relu(x, attributes.get("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda attributes, x: functional.elu(x, attributes.get("alpha", 1.0)),
    "Clip": _clip,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Tanh": _elementwise(torch.tanh),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(functional.hardswish),
    "Mish": _elementwise(functional.mish),
    "Softplus": _elementwise(functional.softplus),
    "Gelu": _gelu,
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
    "LogSoftmax": lambda attributes, x: x.log_softmax(attributes.get("axis", -1)),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "Concat": lambda attributes, *inputs: torch.cat(inputs, attributes["axis"]),
    "Split": _split,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Identity": lambda _, x: x,
    "Dropout": lambda _, x, *rest: x,
    "Shape": _shape,
    "Size": lambda _, x: torch.tensor(x.numel()),
    "Cast": _cast,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "CumSum": _cumulative_sum,
    "ArgMax": _arg_max,
    "TopK": _top_k,
}


def _check_pad(attributes: Attributes) -> str:
    mode = attributes.get("mode", "constant")
    return "" if mode in ("constant", *PAD_MODES) else f"Pad in mode {mode}"


CHECKS: dict[str, Callable[[Attributes], str]] = {
    "AveragePool": check_average_pool,
    "Pad": _check_pad,
    "Resize": check_resize,
}
