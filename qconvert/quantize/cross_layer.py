"""Apply cross-layer equalization: fold a factor for each channel into the weights on both sides.

    producer (W, b) -> f -> reader V        becomes        (W / s, b / s) -> f -> V * s

(Nagel et al. 2019). The float outputs stay the same if f(s x) = s f(x) for every s > 0, as for Relu
or pooling. A Clip is such below its ceiling, so a channel comes near it only as far as calibration
leaves room. Which factors help is decided in `optimize.equalization`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.errors import UsageError
from qconvert.core.scales import FloatArray
from qconvert.graph import patterns

ChannelFactors = Mapping[str, Sequence[float]]

HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}
)
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class ScaledConstant:
    """A constant of one node that takes a factor for each channel along an axis.

    A `depthwise` weight has a filter for each channel.
    """

    value: ir.Value
    axis: int
    depthwise: bool = False

    @property
    def array(self) -> NDArray[np.float32]:
        """The numbers."""
        array = patterns.constant_array(self.value)
        assert array is not None
        return array.astype(np.float32)

    @property
    def channels(self) -> int:
        """How many channels there are along the axis."""
        return int(self.array.shape[self.axis])

    def matrix(self) -> FloatArray:
        """Return the weight of a reader as [output, input channel]."""
        array = np.moveaxis(self.array, self.axis, -1)
        return array.reshape(-1, array.shape[-1])

    def multiply(self, factors: FloatArray) -> None:
        """Multiply each channel by its factor."""
        array = self.array
        shape = [-1 if axis == self.axis else 1 for axis in range(array.ndim)]
        repeated = np.repeat(factors, array.shape[self.axis] // len(factors))
        patterns.set_constant(self.value, (array * repeated.reshape(shape)).astype(np.float32))


@dataclass(frozen=True, eq=False)
class EqualizationSite:
    """A tensor whose channels can have factors, and the constants around it; cut at `ceiling`."""

    tensor: ir.Value
    producers: tuple[ScaledConstant, ...]
    readers: tuple[ScaledConstant, ...]
    ceiling: float | None

    @property
    def channels(self) -> int:
        """How many factors the tensor takes."""
        return self.producers[0].channels


def equalize(model: ir.Model, factors: ChannelFactors) -> ir.Model:
    """Return a copy of a model with its channels divided by factors and the same outputs."""
    model = model.clone()
    sites = {str(site.tensor.name): site for site in find_sites(model.graph)}
    for name, values in factors.items():
        site, array = sites.get(name), np.asarray(values, np.float32)
        if site is None or array.shape != (site.channels,) or not (array > 0).all():
            raise UsageError(
                f"the plan has factors for `{name}` that do not fit this model",
                hint="use the factors of the plan as it was written",
            )
        for producer in site.producers:
            producer.multiply(np.reciprocal(array))
        for reader in site.readers:
            reader.multiply(array)
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
            value = next(value for value in inputs if patterns.constant_array(value) is None)
    return scaled


def find_sites(graph: ir.Graph) -> list[EqualizationSite]:
    """Return every tensor of a graph whose channels can have factors, in its order."""
    values = (
        value for value in patterns.computed_values(graph) if value.dtype is ir.DataType.FLOAT
    )
    return list(filter(None, map(_find_site, values)))


def clip_limits(node: ir.Node) -> tuple[float, float]:
    """Return between which values a Relu or Clip passes its input, as far as they are constant."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = ([*map(patterns.constant_array, node.inputs[1:3]), None, None])[:2]
    return (
        -math.inf if low is None else float(low.item()),
        math.inf if high is None else float(high.item()),
    )


def _find_site(tensor: ir.Value) -> EqualizationSite | None:
    """Return the site of a tensor, if all that reads it and what makes it takes factors."""
    uses = tensor.uses()
    node, ceiling = _find_origin(tensor)
    producers = _find_producers(node) if node is not None else ()
    if node is None or not producers or not uses or tensor.is_graph_output():
        return None
    readers = tuple(filter(None, (_find_reader(use.node, use.idx) for use in uses)))
    # Channels are the second axis of a convolution's output, and the last of a product's.
    kinds = {reader.op_type == "Conv" for reader in (node, *(use.node for use in uses))}
    # Each constant can change without changing anything else.
    exclusive = all(
        constant.value.is_initializer() and len(constant.value.uses()) == 1
        for constant in (*producers, *readers)
    )
    if len(readers) < len(uses) or len(kinds) > 1 or not exclusive:
        return None
    site = EqualizationSite(tensor, producers, readers, ceiling)
    fits = all(
        reader.channels == site.channels
        or (reader.depthwise and reader.channels % site.channels == 0)
        for reader in readers
    )
    return site if fits else None


def _find_origin(value: ir.Value) -> tuple[ir.Node | None, float | None]:
    """Return the node before the homogeneous ones that make a value, and where these cut it."""
    ceiling = math.inf
    while (node := value.producer()) is not None and patterns.is_standard(node, *HOMOGENEOUS):
        low, high = clip_limits(node) if node.op_type == "Clip" else (0, math.inf)
        before = node.inputs[0]
        if low != 0 or before is None or patterns.only_reader(before) is not node:
            return None, None
        ceiling, value = min(ceiling, high), before
    return node, ceiling if math.isfinite(ceiling) else None


def _find_reader(node: ir.Node, slot: int) -> ScaledConstant | None:
    """Return the weight of a product that reads the tensor channel by channel."""
    weight = node.inputs[1] if slot == 0 and patterns.is_standard(node, *PRODUCTS) else None
    array = patterns.constant_array(weight)
    if weight is None or array is None or array.dtype != np.float32:
        return None
    if node.op_type == "Conv":
        if node.attributes.get_int("group", 1) == 1:
            return ScaledConstant(weight, 1)
        return ScaledConstant(weight, 0, depthwise=True) if array.shape[1] == 1 else None
    if array.ndim != 2 or node.attributes.get_int("transA", 0) == 1:
        return None
    return ScaledConstant(weight, 1 if patterns.is_transposed(node) else 0)


def _find_producers(node: ir.Node) -> tuple[ScaledConstant, ...]:
    """Return the weight and bias that make the channels of a node's output; empty where unknown."""
    inputs = [value for value in node.inputs[1:] if value is not None]
    constants: tuple[ScaledConstant, ...] = ()
    if patterns.is_standard(node, *PRODUCTS):
        biases = (ScaledConstant(value, 0) for value in inputs[1:])
        constants = (ScaledConstant(inputs[0], patterns.output_axis(node)), *biases)
    elif patterns.is_standard(node, "LayerNormalization", "RMSNormalization"):
        if node.attributes.get_int("axis", -1) == -1:
            constants = tuple(ScaledConstant(value, 0) for value in inputs)
    elif patterns.is_standard(node, "Add"):
        for product, added in (node.inputs[:2], node.inputs[1::-1]):
            matmul = product.producer() if product is not None else None
            array = patterns.constant_array(added)
            if matmul is None or added is None or array is None or array.ndim != 1:
                continue
            weight = _find_producers(matmul) if patterns.is_standard(matmul, "MatMul") else ()
            if weight and patterns.only_reader(matmul.outputs[0]) is node:
                constants = (*weight, ScaledConstant(added, 0))
                break
    sizes = set()
    for constant in constants:
        array = patterns.constant_array(constant.value)
        if array is None or array.dtype != np.float32 or array.ndim <= constant.axis:
            return ()
        sizes.add(array.shape[constant.axis])
    return constants if len(sizes) == 1 else ()
