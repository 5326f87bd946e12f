"""Channels brought to a common size before they are rounded, where the operators around allow it.

What makes a tensor divides each channel by a factor, in its weight or scale, and what reads the
tensor multiplies by it: the float model answers the same. One step then fits all channels. Between
the two there may be only what treats a positive factor as one, such as Relu or a pooling. A Clip
does so below its ceiling, so a channel comes near it only as far as calibration leaves room.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import UsageError
from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import constant_array, is_standard, only_reader
from qconvert.quantize.rounded_weights import set_constant

ChannelFactors = Mapping[str, Sequence[float]]

HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}
)
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class ScaledConstant:
    """A constant of one node that takes a factor for each channel along an axis."""

    value: ir.Value
    axis: int


@dataclass(frozen=True, eq=False)
class ChannelReader:
    """A product that reads the channels; with a filter for each of them it is `depthwise`."""

    part: ScaledConstant
    depthwise: bool


@dataclass(frozen=True, eq=False)
class EqualizationSite:
    """A tensor whose channels can have factors, with the constants around it.

    Above a `ceiling` the tensor is cut.
    """

    tensor: ir.Value
    producers: tuple[ScaledConstant, ...]
    readers: tuple[ChannelReader, ...]
    ceiling: float | None


def find_sites(graph: ir.Graph) -> list[EqualizationSite]:
    """Return every tensor of a graph whose channels can have factors, in its order."""
    made = (value for node in graph for value in node.outputs)
    found = (_find_site(value) for value in made if value.dtype is ir.DataType.FLOAT)
    return [each for each in found if each is not None]


def equalize(model: ir.Model, factors: ChannelFactors) -> ir.Model:
    """Return a copy of a model with its channels divided by factors; it answers the same."""
    model = model.clone()
    places = {str(site.tensor.name): site for site in find_sites(model.graph)}
    for name, each in factors.items():
        site, array = places.get(name), np.asarray(each, np.float32)
        if site is None or array.shape != (channel_count(site),) or not (array > 0).all():
            raise UsageError(
                f"the plan has factors for `{name}`, which cannot have these",
                hint="take factors as they are in the plan that was written",
            )
        for part in site.producers:
            _multiply_channels(part, np.reciprocal(array))
        for reader in site.readers:
            _multiply_channels(reader.part, array)
    return model


def scaled_tensors(graph: ir.Graph, factors: ChannelFactors) -> set[str]:
    """Return the tensors whose values are others with factors: from where they are made on."""
    found: set[str] = set()
    for site in find_sites(graph):
        if site.tensor.name not in factors:
            continue
        weight, value = site.producers[0].value, site.tensor
        while (node := value.producer()) is not None:
            found.add(str(value.name))
            if weight in node.inputs or not node.inputs or node.inputs[0] is None:
                break
            made = (
                each for each in node.inputs if each is not None and constant_array(each) is None
            )
            value = next(made)
    return found


def channel_count(site: EqualizationSite) -> int:
    """Return how many channels a site has."""
    part = site.producers[0]
    return int(_array(part).shape[part.axis])


def reader_matrix(reader: ChannelReader) -> FloatArray:
    """Return the weight of a reader as [output, input channel]."""
    array = np.moveaxis(_array(reader.part), reader.part.axis, -1)
    return array.reshape(-1, array.shape[-1])


def _array(part: ScaledConstant) -> NDArray[np.float32]:
    found = constant_array(part.value)
    assert found is not None
    return found.astype(np.float32)


def _multiply_channels(part: ScaledConstant, factors: FloatArray) -> None:
    array = _array(part)
    shape = [-1 if axis == part.axis else 1 for axis in range(array.ndim)]
    repeated = np.repeat(factors, array.shape[part.axis] // len(factors))
    set_constant(part.value, (array * repeated.reshape(shape)).astype(np.float32))


def _find_site(tensor: ir.Value) -> EqualizationSite | None:
    readers = [_find_reader(use.node, use.idx) for use in tensor.uses()]
    if not readers or tensor.is_graph_output():
        return None
    known = [each for each in readers if each is not None]
    ceiling, value = None, tensor
    while (node := value.producer()) is not None and is_standard(node, *HOMOGENEOUS):
        top = _clip_ceiling(node)
        if top is None:
            return None
        ceiling = min(top, ceiling or top) if np.isfinite(top) else ceiling
        value = node.inputs[0]  # type: ignore[assignment]
        if value is None or only_reader(value) is not node:
            return None
    divided = _find_producers(node) if node is not None else ()
    if len(known) < len(readers) or not divided:
        return None
    found = EqualizationSite(tensor, divided, tuple(known), ceiling)
    maker = node.op_type if node is not None else ""
    alike = all((use.node.op_type == "Conv") == (maker == "Conv") for use in tensor.uses())
    own = all(map(_is_exclusive, (*divided, *(each.part for each in known))))
    return (
        found
        if alike and own and all(_fits(each, channel_count(found)) for each in known)
        else None
    )


def _is_exclusive(part: ScaledConstant) -> bool:
    """Whether a constant can change without changing anything else."""
    return part.value.is_initializer() and len(list(part.value.uses())) == 1


def _fits(reader: ChannelReader, count: int) -> bool:
    size = int(_array(reader.part).shape[reader.part.axis])
    return (size % count if reader.depthwise else size - count) == 0


def _clip_ceiling(node: ir.Node) -> float | None:
    """Return where a node cuts positive values; None where a factor does not pass through it."""
    if node.op_type != "Clip":
        return np.inf
    low, high = ([*map(constant_array, node.inputs[1:3]), None, None])[:2]
    starts_at_zero = low is not None and low.item() == 0
    return (np.inf if high is None else float(high.item())) if starts_at_zero else None


def _find_reader(node: ir.Node, slot: int) -> ChannelReader | None:
    """Return what multiplies in a product, if it reads the tensor channel by channel."""
    weight = node.inputs[1] if slot == 0 and is_standard(node, *PRODUCTS) else None
    array = constant_array(weight)
    if weight is None or array is None or array.dtype != np.float32:
        return None
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        if groups == 1:
            return ChannelReader(ScaledConstant(weight, 1), depthwise=False)
        return (
            ChannelReader(ScaledConstant(weight, 0), depthwise=True)
            if array.shape[1] == 1
            else None
        )
    if array.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
        return None
    return ChannelReader(ScaledConstant(weight, 1 if _is_transposed(node) else 0), depthwise=False)


def _find_producers(node: ir.Node) -> tuple[ScaledConstant, ...]:
    """Return the constants that make the channels of what a node answers; empty where unknown."""
    made = PRODUCER_CONSTANTS.get(node.op_type) if is_standard(node) else None
    parts = made(node) if made is not None else ()
    arrays = [constant_array(part.value) for part in parts]
    right = all(
        array is not None and array.dtype == np.float32 and array.ndim > part.axis
        for array, part in zip(arrays, parts, strict=True)
    )
    sizes = {array.shape[part.axis] for array, part in zip(arrays, parts, strict=True) if right}  # type: ignore[union-attr]
    return parts if right and len(sizes) == 1 else ()


def _inputs(node: ir.Node, first: int) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs[first:] if value is not None)


def _product_constants(node: ir.Node) -> tuple[ScaledConstant, ...]:
    weight, *bias = _inputs(node, 1)
    array = constant_array(weight)
    last = -1 if array is None else array.ndim - 1
    axis = 0 if node.op_type == "Conv" or _is_transposed(node) else last
    return (ScaledConstant(weight, axis), *(ScaledConstant(each, 0) for each in bias))


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _norm_constants(node: ir.Node) -> tuple[ScaledConstant, ...]:
    flat = node.attributes.get_int("axis", -1) == -1
    return tuple(ScaledConstant(each, 0) for each in _inputs(node, 1)) if flat else ()


def _sum_constants(node: ir.Node) -> tuple[ScaledConstant, ...]:
    """Return a constant that is added to a product, and those of the product."""
    for product, added in (node.inputs[:2], node.inputs[1::-1]):
        behind = product.producer() if product is not None else None
        array = constant_array(added)
        if behind is None or added is None or array is None or array.ndim != 1:
            continue
        parts = _find_producers(behind) if is_standard(behind, "MatMul") else ()
        if parts and only_reader(behind.outputs[0]) is node:
            return (*parts, ScaledConstant(added, 0))
    return ()


PRODUCER_CONSTANTS: Mapping[str, Callable[[ir.Node], tuple[ScaledConstant, ...]]] = {
    "Conv": _product_constants,
    "Gemm": _product_constants,
    "MatMul": _product_constants,
    "LayerNormalization": _norm_constants,
    "RMSNormalization": _norm_constants,
    "Add": _sum_constants,
}
