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

from qconvert.errors import UsageError
from qconvert.graph.patterns import constant, is_standard, only_reader
from qconvert.quantize.learned import give
from qconvert.scales import Floats

Factors = Mapping[str, Sequence[float]]

PASSING = frozenset(
    {"Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}
)
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class Part:
    """A constant of one node that takes a factor for each channel along an axis."""

    value: ir.Value
    axis: int


@dataclass(frozen=True, eq=False)
class Reader:
    """A product that reads the channels; with a filter for each of them it is `depthwise`."""

    part: Part
    depthwise: bool


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor whose channels can have factors, with the constants around it.

    Above a `ceiling` the tensor is cut.
    """

    tensor: ir.Value
    divided: tuple[Part, ...]
    readers: tuple[Reader, ...]
    ceiling: float | None


def sites(graph: ir.Graph) -> list[Site]:
    """Return every tensor of a graph whose channels can have factors, in its order."""
    made = (value for node in graph for value in node.outputs)
    found = (_site(value) for value in made if value.dtype is ir.DataType.FLOAT)
    return [each for each in found if each is not None]


def equalized(model: ir.Model, factors: Factors) -> ir.Model:
    """Return a copy of a model with its channels divided by factors; it answers the same."""
    model = model.clone()
    places = {str(site.tensor.name): site for site in sites(model.graph)}
    for name, each in factors.items():
        site, array = places.get(name), np.asarray(each, np.float32)
        if site is None or array.shape != (channels(site),) or not (array > 0).all():
            raise UsageError(
                f"the plan has factors for `{name}`, which cannot have these",
                hint="take factors as they are in the plan that was written",
            )
        for part in site.divided:
            _scale(part, np.reciprocal(array))
        for reader in site.readers:
            _scale(reader.part, array)
    return model


def scaled(graph: ir.Graph, factors: Factors) -> set[str]:
    """Return the tensors whose values are others with factors: from where they are made on."""
    found: set[str] = set()
    for site in sites(graph):
        if site.tensor.name not in factors:
            continue
        weight, value = site.divided[0].value, site.tensor
        while (node := value.producer()) is not None:
            found.add(str(value.name))
            if weight in node.inputs or not node.inputs or node.inputs[0] is None:
                break
            made = (each for each in node.inputs if each is not None and constant(each) is None)
            value = next(made)
    return found


def channels(site: Site) -> int:
    """Return how many channels a site has."""
    part = site.divided[0]
    return int(_array(part).shape[part.axis])


def columns(reader: Reader) -> Floats:
    """Return the weight of a reader as [output, input channel]."""
    array = np.moveaxis(_array(reader.part), reader.part.axis, -1)
    return array.reshape(-1, array.shape[-1])


def _array(part: Part) -> NDArray[np.float32]:
    found = constant(part.value)
    assert found is not None
    return found.astype(np.float32)


def _scale(part: Part, factors: Floats) -> None:
    array = _array(part)
    shape = [-1 if axis == part.axis else 1 for axis in range(array.ndim)]
    repeated = np.repeat(factors, array.shape[part.axis] // len(factors))
    give(part.value, (array * repeated.reshape(shape)).astype(np.float32))


def _site(tensor: ir.Value) -> Site | None:
    readers = [_reader(use.node, use.idx) for use in tensor.uses()]
    if not readers or tensor.is_graph_output():
        return None
    known = [each for each in readers if each is not None]
    ceiling, value = None, tensor
    while (node := value.producer()) is not None and is_standard(node, *PASSING):
        top = _ceiling(node)
        if top is None:
            return None
        ceiling = min(top, ceiling or top) if np.isfinite(top) else ceiling
        value = node.inputs[0]  # type: ignore[assignment]
        if value is None or only_reader(value) is not node:
            return None
    divided = _divided(node) if node is not None else ()
    if len(known) < len(readers) or not divided:
        return None
    found = Site(tensor, divided, tuple(known), ceiling)
    maker = node.op_type if node is not None else ""
    alike = all((use.node.op_type == "Conv") == (maker == "Conv") for use in tensor.uses())
    own = all(map(_own, (*divided, *(each.part for each in known))))
    return found if alike and own and all(_fits(each, channels(found)) for each in known) else None


def _own(part: Part) -> bool:
    """Whether a constant can change without changing anything else."""
    return part.value.is_initializer() and len(list(part.value.uses())) == 1


def _fits(reader: Reader, count: int) -> bool:
    size = int(_array(reader.part).shape[reader.part.axis])
    return (size % count if reader.depthwise else size - count) == 0


def _ceiling(node: ir.Node) -> float | None:
    """Return where a node cuts positive values; None where a factor does not pass through it."""
    if node.op_type != "Clip":
        return np.inf
    low, high = ([*map(constant, node.inputs[1:3]), None, None])[:2]
    starts_at_zero = low is not None and low.item() == 0
    return (np.inf if high is None else float(high.item())) if starts_at_zero else None


def _reader(node: ir.Node, slot: int) -> Reader | None:
    """Return what multiplies in a product, if it reads the tensor channel by channel."""
    weight = node.inputs[1] if slot == 0 and is_standard(node, *PRODUCTS) else None
    array = constant(weight)
    if weight is None or array is None or array.dtype != np.float32:
        return None
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        if groups == 1:
            return Reader(Part(weight, 1), depthwise=False)
        return Reader(Part(weight, 0), depthwise=True) if array.shape[1] == 1 else None
    if array.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
        return None
    return Reader(Part(weight, 1 if _is_turned(node) else 0), depthwise=False)


def _divided(node: ir.Node) -> tuple[Part, ...]:
    """Return the constants that make the channels of what a node answers; empty where unknown."""
    made = MAKERS.get(node.op_type) if is_standard(node) else None
    parts = made(node) if made is not None else ()
    arrays = [constant(part.value) for part in parts]
    right = all(
        array is not None and array.dtype == np.float32 and array.ndim > part.axis
        for array, part in zip(arrays, parts, strict=True)
    )
    sizes = {array.shape[part.axis] for array, part in zip(arrays, parts, strict=True) if right}  # type: ignore[union-attr]
    return parts if right and len(sizes) == 1 else ()


def _inputs(node: ir.Node, first: int) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs[first:] if value is not None)


def _of_product(node: ir.Node) -> tuple[Part, ...]:
    weight, *bias = _inputs(node, 1)
    array = constant(weight)
    last = -1 if array is None else array.ndim - 1
    axis = 0 if node.op_type == "Conv" or _is_turned(node) else last
    return (Part(weight, axis), *(Part(each, 0) for each in bias))


def _is_turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _of_norm(node: ir.Node) -> tuple[Part, ...]:
    flat = node.attributes.get_int("axis", -1) == -1
    return tuple(Part(each, 0) for each in _inputs(node, 1)) if flat else ()


def _of_sum(node: ir.Node) -> tuple[Part, ...]:
    """Return a constant that is added to a product, and those of the product."""
    for product, added in (node.inputs[:2], node.inputs[1::-1]):
        behind = product.producer() if product is not None else None
        array = constant(added)
        if behind is None or added is None or array is None or array.ndim != 1:
            continue
        parts = _divided(behind) if is_standard(behind, "MatMul") else ()
        if parts and only_reader(behind.outputs[0]) is node:
            return (*parts, Part(added, 0))
    return ()


MAKERS: Mapping[str, Callable[[ir.Node], tuple[Part, ...]]] = {
    "Conv": _of_product,
    "Gemm": _of_product,
    "MatMul": _of_product,
    "LayerNormalization": _of_norm,
    "RMSNormalization": _of_norm,
    "Add": _of_sum,
}
