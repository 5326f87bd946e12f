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


def require_operators(model: ir.Model) -> None:
    """Refuse a model with operators that are not in the table, and name them."""
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


# --- convolutions, products and pools ---


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.dim() - 2
    x, pads = _pad_unevenly(attributes, x, weight.shape[2:], 0.0)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    return convolve(x, weight, bias, strides, pads, dilations, attributes.get("group", 1))


def _conv_transpose(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    rank = weight.dim() - 2
    convolve = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[rank - 1]
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    pads = attributes.get("pads") or [0] * (2 * rank)
    begins, ends = pads[:rank], pads[rank:]
    extra = attributes.get("output_padding") or [0] * rank
    # torch crops both sides alike; what the end keeps beyond that is output padding, or cropped.
    more = [e - (end - begin) for e, begin, end in zip(extra, begins, ends, strict=True)]
    kept = [max(0, size) for size in more]
    group = attributes.get("group", 1)
    y = convolve(x, weight, bias, strides, begins, kept, group, dilations)
    for axis, size in enumerate(more):
        y = y.narrow(axis + 2, 0, y.shape[axis + 2] + min(0, size))
    return y


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Any:
    a = a.mT if attributes.get("transA", 0) else a
    b = b if attributes.get("transB", 0) else b.mT
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and c is not None and c.dim() == 1:
        return functional.linear(a, b, c)
    y = functional.linear(a, b) * alpha
    return y if c is None else y + beta * c


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    x, pads = _pad_unevenly(attributes, x, kernel, -math.inf)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    return pool(x, kernel, strides, pads, dilations, bool(attributes.get("ceil_mode", 0)))


def _average_pool(attributes: Attributes, x: Tensor) -> Any:
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    strides, ceil = _per_axis(attributes, "strides", rank), bool(attributes.get("ceil_mode", 0))
    padded, pads = _pad_unevenly(attributes, x, kernel, 0.0)
    if padded is x:
        return pool(x, kernel, strides, pads, ceil, bool(attributes.get("count_include_pad", 0)))
    means = pool(padded, kernel, strides, pads, ceil)
    if attributes.get("count_include_pad", 0):
        return means
    ones, _ = _pad_unevenly(attributes, torch.ones_like(x[:1, :1]), kernel, 0.0)
    return means / pool(ones, kernel, strides, pads, ceil)


def _per_axis(attributes: Attributes, name: str, rank: int) -> list[int]:
    return list(attributes.get(name) or [1] * rank)


def _pad_unevenly(
    attributes: Attributes, x: Tensor, kernel: Sequence[int], value: float
) -> tuple[Tensor, list[int]]:
    """Return the input, padded if its ends differ, and the even padding that is left to do."""
    rank = len(kernel)
    pads = list(attributes.get("pads") or [0] * (2 * rank))
    kind = attributes.get("auto_pad", "NOTSET")
    if kind.startswith("SAME"):
        pads = _same_pads(attributes, kind, x.shape[2:], kernel)
    begins, ends = pads[:rank], pads[rank:]
    if begins == ends:
        return x, begins
    sides = [side for axis in reversed(range(rank)) for side in (begins[axis], ends[axis])]
    return functional.pad(x, sides, value=value), [0] * rank


def _same_pads(
    attributes: Attributes, kind: str, sizes: Sequence[int], kernel: Sequence[int]
) -> list[int]:
    """Return the padding with which the output has a value for every stride of the input."""
    rank = len(kernel)
    strides, dilations = (
        _per_axis(attributes, "strides", rank),
        _per_axis(attributes, "dilations", rank),
    )
    totals = [
        max((-(-size // stride) - 1) * stride + (side - 1) * dilation + 1 - size, 0)
        for size, side, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    begins = [total // 2 if kind == "SAME_UPPER" else total - total // 2 for total in totals]
    return begins + [total - begin for total, begin in zip(totals, begins, strict=True)]


# --- normalization and activation ---


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
    return functional.group_norm(x, groups, weight, bias, epsilon)


def _clip(
    attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    bottom = attributes.get("min") if low is None else float(low)
    top = attributes.get("max") if high is None else float(high)
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
    # torch pads only the last axes in other modes, with a batch and channels before them.
    flat = [side for axis in reversed(range(2, x.dim())) for side in by_axis.get(axis, (0, 0))]
    return functional.pad(x, flat, mode=PAD_MODES[mode])


PAD_MODES = {"edge": "replicate", "wrap": "circular", "reflect": "reflect"}


def _resize(
    attributes: Attributes,
    x: Tensor,
    _: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode = RESIZE_MODES[_resize_key(attributes)][x.dim() == 4]
    aligned = attributes.get("coordinate_transformation_mode") == "align_corners"
    corners = None if mode.startswith("nearest") else aligned
    if sizes is not None and sizes.numel():
        size = _integers(sizes)[-(x.dim() - 2) :]
        return functional.interpolate(x, size=size, mode=mode, align_corners=corners)
    assert scales is not None
    factors = [float(scale) for scale in scales.flatten().tolist()][2:]
    return functional.interpolate(x, scale_factor=factors, mode=mode, align_corners=corners)


def _resize_key(attributes: Attributes) -> tuple[str, str, str]:
    mode = attributes.get("mode", "nearest")
    coordinates = attributes.get("coordinate_transformation_mode", "half_pixel")
    nearest = attributes.get("nearest_mode", "round_prefer_floor") if mode == "nearest" else ""
    return mode, coordinates, nearest


# The modes of torch for 3 and for 4 axes, by mode, coordinates and rounding.
RESIZE_MODES: dict[tuple[str, str, str], tuple[str, str]] = {
    ("nearest", "asymmetric", "floor"): ("nearest", "nearest"),
    ("nearest", "half_pixel", "round_prefer_ceil"): ("nearest-exact", "nearest-exact"),
    # By whole factors both round alike.
    ("nearest", "half_pixel", "round_prefer_floor"): ("nearest-exact", "nearest-exact"),
    ("linear", "half_pixel", ""): ("linear", "bilinear"),
    ("linear", "pytorch_half_pixel", ""): ("linear", "bilinear"),
    ("linear", "align_corners", ""): ("linear", "bilinear"),
    ("cubic", "half_pixel", ""): ("", "bicubic"),
    ("cubic", "pytorch_half_pixel", ""): ("", "bicubic"),
    ("cubic", "align_corners", ""): ("", "bicubic"),
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


def _divide(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    integral = not (x.is_floating_point() or y.is_floating_point())
    return torch.div(x, y, rounding_mode="trunc" if integral else None)


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _integers(axes if axes is not None else attributes.get("axes"))
        if not chosen and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, chosen or list(range(x.dim())), bool(attributes.get("keepdims", 1)))

    return reduce


def _global_pool(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    return lambda _, x: function(x, list(range(2, x.dim())), True)


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda _, *inputs: function(*inputs)


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
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _elementwise(torch.matmul),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
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
    "Sign": _elementwise(torch.sign),
    "Not": _elementwise(torch.logical_not),
    "And": _elementwise(torch.logical_and),
    "Or": _elementwise(torch.logical_or),
    "Equal": _elementwise(torch.eq),
    "Less": _elementwise(torch.lt),
    "Greater": _elementwise(torch.gt),
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
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Identity": lambda _, x: x,
    "Dropout": lambda _, x, *rest: x,
    "Shape": _shape,
    "Cast": _cast,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ArgMax": _arg_max,
    "TopK": _top_k,
}


def _check_resize(attributes: Attributes) -> str:
    mode, coordinates, nearest = _resize_key(attributes)
    if (mode, coordinates, nearest) not in RESIZE_MODES or attributes.get("antialias", 0):
        return f"Resize in mode {mode}, {coordinates}" + (f", {nearest}" if nearest else "")
    return ""


def _check_pad(attributes: Attributes) -> str:
    mode = attributes.get("mode", "constant")
    return "" if mode in ("constant", *PAD_MODES) else f"Pad in mode {mode}"


CHECKS: dict[str, Callable[[Attributes], str]] = {"Resize": _check_resize, "Pad": _check_pad}
