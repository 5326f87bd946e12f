"""Apply cross-layer equalization: fold a factor for each channel into the weights on both sides.

    producer (W, b) -> f -> reader V        becomes        (W / s, b / s) -> f -> V * s

(Nagel et al. 2019). The float outputs stay the same if f(s x) = s f(x) for every s > 0, as for Relu
or pooling. A Clip is such below its ceiling, so a channel comes near it only as far as calibration
leaves room. Which factors help is decided in `optimize.equalization`.
"""

from collections.abc import Mapping, Sequence
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
    """The weight of a product that reads the channels, `depthwise` with a filter for each."""

    part: ScaledConstant
    depthwise: bool


@dataclass(frozen=True, eq=False)
class EqualizationSite:
    """A tensor whose channels can have factors, with the constants around it.

    Values above the `ceiling` are cut.
    """

    tensor: ir.Value
    producers: tuple[ScaledConstant, ...]
    readers: tuple[ChannelReader, ...]
    ceiling: float | None


def equalize(model: ir.Model, factors: ChannelFactors) -> ir.Model:
    """Return a copy of a model with its channels divided by factors and the same outputs."""
    model = model.clone()
    sites = {str(site.tensor.name): site for site in find_sites(model.graph)}
    for name, values in factors.items():
        site, array = sites.get(name), np.asarray(values, np.float32)
        if site is None or array.shape != (channel_count(site),) or not (array > 0).all():
            raise UsageError(
                f"the plan has factors for `{name}`, which cannot have these",
                hint="use the factors of the plan as it was written",
            )
        for constant in site.producers:
            _multiply_channels(constant, np.reciprocal(array))
        for reader in site.readers:
            _multiply_channels(reader.part, array)
    return model


def scaled_tensors(graph: ir.Graph, factors: ChannelFactors) -> set[str]:
    """Return the tensors whose values change: from the producer of each site to its reader."""
    scaled: set[str] = set()
    for site in find_sites(graph):
        if site.tensor.name not in factors:
            continue
        weight, value = site.producers[0].value, site.tensor
        while (node := value.producer()) is not None:
            scaled.add(str(value.name))
            if weight in node.inputs or not node.inputs or node.inputs[0] is None:
                break
            inputs = (value for value in node.inputs if value is not None)
            value = next(value for value in inputs if constant_array(value) is None)
    return scaled


def find_sites(graph: ir.Graph) -> list[EqualizationSite]:
    """Return every tensor of a graph whose channels can have factors, in its order."""
    values = (value for node in graph for value in node.outputs)
    sites = (_find_site(value) for value in values if value.dtype is ir.DataType.FLOAT)
    return [site for site in sites if site is not None]


def channel_count(site: EqualizationSite) -> int:
    """Return how many channels a site has."""
    constant = site.producers[0]
    return int(_array(constant).shape[constant.axis])


def reader_matrix(reader: ChannelReader) -> FloatArray:
    """Return the weight of a reader as [output, input channel]."""
    array = np.moveaxis(_array(reader.part), reader.part.axis, -1)
    return array.reshape(-1, array.shape[-1])


def _array(constant: ScaledConstant) -> NDArray[np.float32]:
    array = constant_array(constant.value)
    assert array is not None
    return array.astype(np.float32)


def _multiply_channels(constant: ScaledConstant, factors: FloatArray) -> None:
    array = _array(constant)
    shape = [-1 if axis == constant.axis else 1 for axis in range(array.ndim)]
    repeated = np.repeat(factors, array.shape[constant.axis] // len(factors))
    set_constant(constant.value, (array * repeated.reshape(shape)).astype(np.float32))


def _find_site(tensor: ir.Value) -> EqualizationSite | None:
    """Return the site of a tensor, if all that reads it and what makes it takes factors."""
    if tensor.is_graph_output() or not tensor.uses():
        return None
    ceiling, value = None, tensor
    while (node := value.producer()) is not None and is_standard(node, *HOMOGENEOUS):
        node_ceiling = _clip_ceiling(node)
        if node_ceiling is None:
            return None
        ceiling = (
            min(node_ceiling, ceiling or node_ceiling) if np.isfinite(node_ceiling) else ceiling
        )
        value = node.inputs[0]  # type: ignore[assignment]
        if value is None or only_reader(value) is not node:
            return None
    producers = _find_producers(node) if node is not None else ()
    if node is None or not producers:
        return None
    readers = []
    for use in tensor.uses():
        reader = _find_reader(use.node, use.idx)
        # Channels are the second axis of a convolution's output, and the last of a product's.
        if reader is None or (use.node.op_type == "Conv") != (node.op_type == "Conv"):
            return None
        readers.append(reader)
    site = EqualizationSite(tensor, producers, tuple(readers), ceiling)
    constants = [*producers, *(reader.part for reader in readers)]
    exclusive = all(_is_exclusive(constant) for constant in constants)
    fits = all(_fits(reader, channel_count(site)) for reader in readers)
    return site if exclusive and fits else None


def _is_exclusive(constant: ScaledConstant) -> bool:
    """Whether a constant can change without changing anything else."""
    return constant.value.is_initializer() and len(list(constant.value.uses())) == 1


def _fits(reader: ChannelReader, channels: int) -> bool:
    size = int(_array(reader.part).shape[reader.part.axis])
    return size % channels == 0 if reader.depthwise else size == channels


def _clip_ceiling(node: ir.Node) -> float | None:
    """Return where a node cuts positive values; None if it is not homogeneous below that."""
    if node.op_type != "Clip":
        return np.inf
    low, high = ([*map(constant_array, node.inputs[1:3]), None, None])[:2]
    if low is None or low.item() != 0:
        return None
    return np.inf if high is None else float(high.item())


def _find_reader(node: ir.Node, slot: int) -> ChannelReader | None:
    """Return the weight of a product that reads the tensor channel by channel."""
    weight = node.inputs[1] if slot == 0 and is_standard(node, *PRODUCTS) else None
    array = constant_array(weight)
    if weight is None or array is None or array.dtype != np.float32:
        return None
    if node.op_type == "Conv":
        if node.attributes.get_int("group", 1) == 1:
            return ChannelReader(ScaledConstant(weight, 1), depthwise=False)
        if array.shape[1] == 1:
            return ChannelReader(ScaledConstant(weight, 0), depthwise=True)
        return None
    if array.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
        return None
    return ChannelReader(ScaledConstant(weight, 1 if _is_transposed(node) else 0), depthwise=False)


def _find_producers(node: ir.Node) -> tuple[ScaledConstant, ...]:
    """Return the constants that make the channels of a node's output; empty where unknown.

    These are the weight and bias of a product or a normalization, or of a MatMul and the Add
    behind it.
    """
    inputs = [value for value in node.inputs[1:] if value is not None]
    constants: tuple[ScaledConstant, ...] = ()
    if is_standard(node, *PRODUCTS):
        array = constant_array(inputs[0])
        last = -1 if array is None else array.ndim - 1
        axis = 0 if node.op_type == "Conv" or _is_transposed(node) else last
        biases = (ScaledConstant(value, 0) for value in inputs[1:])
        constants = (ScaledConstant(inputs[0], axis), *biases)
    elif is_standard(node, "LayerNormalization", "RMSNormalization"):
        if node.attributes.get_int("axis", -1) == -1:
            constants = tuple(ScaledConstant(value, 0) for value in inputs)
    elif is_standard(node, "Add"):
        constants = _find_matmul_and_bias(node)
    arrays = [constant_array(constant.value) for constant in constants]
    sizes = set()
    for constant, array in zip(constants, arrays, strict=True):
        if array is None or array.dtype != np.float32 or array.ndim <= constant.axis:
            return ()
        sizes.add(array.shape[constant.axis])
    return constants if len(sizes) == 1 else ()


def _find_matmul_and_bias(node: ir.Node) -> tuple[ScaledConstant, ...]:
    """Return the weight of a MatMul and the constant that an Add adds to it, in any order."""
    for product, added in (node.inputs[:2], node.inputs[1::-1]):
        matmul, array = product.producer() if product is not None else None, constant_array(added)
        if matmul is None or added is None or array is None or array.ndim != 1:
            continue
        weight = _find_producers(matmul) if is_standard(matmul, "MatMul") else ()
        if weight and only_reader(matmul.outputs[0]) is node:
            return (*weight, ScaledConstant(added, 0))
    return ()


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
