"""The Q/DQ graph of a plan as a torch module, with everything that the plan decides as parameters.

The module is read from the graph that `apply_plan` writes, node by node, so it rounds where that
graph rounds. Parameters are the weights and biases of quantized layers and the steps of weights and
activations; everything else stays as the float model has it. `to_plan` writes them back: the same
plan, with other ranges and with learned weights.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qconvert.core import onnx_io
from qconvert.core.scales import Range, choose_qparams
from qconvert.graph import patterns
from qconvert.quantize import pairs, plan_files
from qconvert.quantize.apply_plan import apply_plan, find_planned_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan import (
    BIAS_SLOT,
    NO_ROUNDED_WEIGHTS,
    Plan,
    RoundedWeight,
    RoundedWeights,
)
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.quantize.weights import WeightedLayer, WeightKey, find_weighted_layers, weight_array
from qconvert.train.fake_quantize import ActivationQuantizer, WeightQuantizer
from qconvert.train.operators import OPERATORS, read_attributes, require_operators

# They always have a bias that can be learned; a product only if one is added behind it.
WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class Step:
    """One operation: the tensors that it reads and computes, and those that nothing reads later."""

    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedLayer:
    """A quantized layer: where the module keeps its weight, and its bias if it has one."""

    node: str
    weight: str
    bias: str = ""


class TrainableGraph(nn.Module):
    """A quantized network; it takes and returns tensors by name.

    `latent_in_steps` decides the unit of the weights (`WeightQuantizer`).
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        learned: RoundedWeights = NO_ROUNDED_WEIGHTS,
        *,
        latent_in_steps: bool = True,
    ) -> None:
        super().__init__()
        require_operators(model)
        self.plan = plan
        self.weights, self.activations = nn.ModuleDict(), nn.ModuleDict()
        self.biases = nn.ParameterDict()
        self.layers: list[TrainedLayer] = []
        self.tensors: dict[str, str] = {}  # plan's tensor -> quantizer
        self.constant_keys: dict[str, str] = {}  # tensor -> buffer
        quantized = apply_plan(model, plan, learned, keep_values=True)
        builder = _Reader(self, equalize(model, plan.equalized), quantized)
        builder.read(latent_in_steps)
        self.steps, self.inputs, self.outputs = builder.steps, builder.inputs, builder.outputs

    def forward(self, feeds: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
        """Return the outputs by name; a tensor alone is the first input."""
        values = {self.inputs[0]: feeds} if isinstance(feeds, Tensor) else dict(feeds)
        values = self.run(values)
        return {name: values[name] for name in self.outputs}

    def run(
        self,
        values: Mapping[str, Tensor],
        keep: frozenset[str] = frozenset(),
        steps: Sequence[Step] | None = None,
    ) -> dict[str, Tensor]:
        """Compute all tensors from those of the inputs; return the outputs and those to `keep`.

        With `steps`, only these run, from the tensors that they read.
        """
        held = {name: _channels_last(value) for name, value in values.items()}
        constants = self.constants()
        for step in self.steps if steps is None else steps:
            inputs = [
                None if not name else held[name] if name in held else constants[name]
                for name in step.inputs
            ]
            results = step.run(*inputs)
            if len(step.outputs) == 1 and not isinstance(results, tuple):
                held[step.outputs[0]] = results
            else:
                held.update(zip(step.outputs, results, strict=False))
            for name in step.dead:
                if name not in keep:
                    held.pop(name, None)
        return held

    def constants(self) -> dict[str, Tensor]:
        """Return the constants of the graph that are not parameters, by the names of tensors."""
        return {name: self.get_buffer(key) for name, key in self.constant_keys.items()}

    def float_mode(self, is_float: bool) -> None:
        """Turn all rounding off or on."""
        for weight in self._weight_quantizers():
            weight.quantizes = not is_float
        for activation in self._activation_quantizers():
            activation.quantizes = not is_float

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by what they are: weights, biases, steps."""
        return self.parameters_of(self.steps)

    def parameters_of(self, steps: Sequence[Step]) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that some steps read, as `parameter_groups` returns all."""
        groups: dict[str, dict[int, nn.Parameter]] = {
            kind: {} for kind in ("weights", "biases", "weight_steps", "steps")
        }

        def add(kind: str, parameter: object) -> None:
            if isinstance(parameter, nn.Parameter):
                groups[kind][id(parameter)] = parameter

        keys = {f"{layer.node}/bias": layer.bias for layer in self.layers if layer.bias}
        for step in steps:
            source = step.run.func if isinstance(step.run, partial) else step.run
            if isinstance(source, WeightQuantizer):
                add("weights", source.latent)
                add("weight_steps", source.log_steps)
            elif isinstance(source, ActivationQuantizer):
                add("steps", source.log_step)
            for name in step.outputs:
                if name in keys:
                    add("biases", self.biases[keys[name]])
        return {kind: list(parameters.values()) for kind, parameters in groups.items()}

    def output_deviations(self, feeds: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the standard deviation of the output of each layer with a bias, by its key."""
        keys = {f"{layer.node}/bias": layer.bias for layer in self.layers if layer.bias}
        outputs = {
            keys[name]: step.outputs[0]
            for step in self.steps
            for name in step.inputs
            if name in keys
        }
        with torch.no_grad():
            values = self.run(feeds, frozenset(outputs.values()))
        return {key: float(values[name].std()) for key, name in outputs.items()}

    def to_plan(self) -> PlanWithWeights:
        """Return the plan with the ranges and weights as they are now."""
        tensors = dict(self.plan.tensors)
        for name, key in self.tensors.items():
            quantizer = self.activations[key]
            assert isinstance(quantizer, ActivationQuantizer)
            if isinstance(quantizer.log_step, nn.Parameter):
                tensors[name] = _range(self.plan, name, quantizer)
        weights = {}
        for layer in self.layers:
            quantizer_of_weight = self.weights[layer.weight]
            assert isinstance(quantizer_of_weight, WeightQuantizer)
            integers = _array(quantizer_of_weight.integers()).astype(np.int8)
            steps = _array(quantizer_of_weight.steps).reshape(-1)
            bias = _array(self.biases[layer.bias]).reshape(-1) if layer.bias else None
            weights[layer.node] = RoundedWeight(integers, steps, bias)
        digest = plan_files.weights_digest(weights)
        return PlanWithWeights(replace(self.plan, tensors=tensors, learned=digest), weights)

    def _weight_quantizers(self) -> Iterator[WeightQuantizer]:
        for quantizer in self.weights.values():
            assert isinstance(quantizer, WeightQuantizer)
            yield quantizer

    def _activation_quantizers(self) -> Iterator[ActivationQuantizer]:
        for quantizer in self.activations.values():
            assert isinstance(quantizer, ActivationQuantizer)
            yield quantizer


class _Reader:
    """Reads the steps and parameters of a module from the float graph and the Q/DQ graph."""

    def __init__(self, module: TrainableGraph, floats: ir.Model, quantized: ir.Model) -> None:
        self.module, self.plan = module, module.plan
        self.graph, self.floats = quantized.graph, floats.graph
        self.inputs = [spec.name for spec in onnx_io.inputs(quantized)]
        self.outputs = [spec.name for spec in onnx_io.outputs(quantized)]
        self.steps: list[Step] = []
        self.renamed: dict[tuple[str, int], str] = {}  # node and input -> what it reads instead

    def read(self, latent_in_steps: bool) -> None:
        """Read the weights, then the activations, then all steps."""
        layers = find_planned_layers(self.floats, self.plan)
        weighted = list(find_weighted_layers(layers, self.plan))
        nodes = {node.name or "": node for node in self.graph}
        by_weight: dict[ir.Value, set[WeightKey]] = {}
        for layer in weighted:
            by_weight.setdefault(layer.weight, set()).add(layer.key)
        keys: dict[WeightKey, str] = {}
        for layer in weighted:
            # One constant cannot hold two sets of integers.
            if len(by_weight[layer.weight]) == 1:
                self._read_weight(layer, nodes[layer.node.name or ""], keys, latent_in_steps)
        self._read_quantizers()
        for node in self.graph:
            self._read_node(node)
        self._find_dead()

    def _read_weight(
        self, layer: WeightedLayer, node: ir.Node, keys: dict[WeightKey, str], latent_in_steps: bool
    ) -> None:
        """Give a layer its weight and bias as parameters; layers that share a weight share both."""
        name, source = node.name or "", patterns.producer_of(node.inputs[layer.slot])
        if source is None or source.op_type != "DequantizeLinear":
            return
        key = keys.setdefault(layer.key, _key(name))
        if key not in self.module.weights:
            integers, steps = (_constant(source, slot) for slot in (0, 1))
            shape = [-1 if axis == layer.axis else 1 for axis in range(integers.ndim)]
            self.module.weights[key] = WeightQuantizer(
                _tensor(weight_array(layer.weight, layer.node)),
                _tensor(integers.astype(np.float32)),
                _tensor(np.array(steps, np.float32).reshape(shape)),
                largest=layer.grid.symmetric_max,
                pair_places=_pair_places(layer.paired, integers.shape),
                in_steps=latent_in_steps,
            )
        weight = f"{name}/weight"
        self.renamed[name, layer.slot] = weight
        self.steps.append(Step(self.module.weights[key], (), (weight,)))
        self.module.layers.append(TrainedLayer(name, key, self._read_bias(node, layer)))

    def _read_bias(self, node: ir.Node, layer: WeightedLayer) -> str:
        """Make the bias of a layer a parameter and return its key, empty if there is none."""
        name, reader, slot = node.name or "", node, BIAS_SLOT
        value = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else None
        channels = weight_array(layer.weight, layer.node).shape[layer.axis]
        if node.op_type == "MatMul":
            add, value = patterns.find_matmul_bias(node)
            if add is None or value is None:
                return ""
            reader, slot = add, list(add.inputs).index(value)
        array = (
            np.zeros(channels, np.float32) if value is None else patterns.dequantized_array(value)
        )
        if node.op_type not in (*WITH_BIAS, "MatMul") or array is None or array.size != channels:
            return ""
        if node.op_type == "ConvTranspose":
            group = node.attributes.get_int("group", 1)
            if group > 1:  # the axis of the weight holds the outputs of one group
                return ""
        key, tensor = _key(name), f"{name}/bias"
        self.module.biases[key] = nn.Parameter(_tensor(array.reshape(-1)))
        self.renamed[reader.name or "", slot] = tensor
        self.steps.append(Step(partial(self.module.biases.__getitem__, key), (), (tensor,)))
        return key

    def _read_quantizers(self) -> None:
        """Make a quantizer for each quantized activation; tensors of one scale around a node share it.

        A tensor that an operator only passes on, or sums of tensors with one scale, need no
        requantization, and must not get one.
        """
        dequantizers = {
            name: node
            for node in self.graph
            if (name := str(node.meta.get("tensor", ""))) in self.plan.tensors
        }
        for group in _group_by_scale(self.floats, self.plan, dequantizers):
            node = dequantizers[group[0]]
            scale, zero_point = (_constant(node, slot) for slot in (1, 2))
            step, key = float(scale), _key(group[0])
            # A power of two was chosen, not measured.
            fixed = np.frexp(np.float32(step))[0] == 0.5
            grid = self.plan.activations
            limits = (grid.quant_min, grid.quant_max)
            quantizer = ActivationQuantizer(step, int(zero_point), limits, bool(fixed))
            self.module.activations[key] = quantizer
            self.module.tensors.update(dict.fromkeys(group, key))

    def _read_node(self, node: ir.Node) -> None:
        """Add the step of a node; a pair of Q and DQ is one step, where it is dequantized."""
        outputs = tuple(str(value.name) for value in node.outputs)
        if node.op_type == "QuantizeLinear" or patterns.clips_integers(node):
            return
        if node.op_type == "DequantizeLinear":
            quantize = patterns.find_quantizer(node)
            if quantize is None:
                # A weight or bias that is not a parameter; those that are have a step of their own.
                uses = node.outputs[0].uses()
                if any((use.node.name or "", use.idx) not in self.renamed for use in uses):
                    array = patterns.dequantized_array(node.outputs[0])
                    assert array is not None
                    self._add_constant(outputs[0], array)
                return
            quantizer, factor = self._quantizer(node, quantize)
            run = partial(quantizer, factor=factor) if factor != 1.0 else quantizer
            self.steps.append(Step(run, (str(quantize.inputs[0].name),), outputs))  # type: ignore[union-attr]
            return
        inputs = [value.name or "" if value is not None else "" for value in node.inputs]
        for slot in range(max(len(inputs), BIAS_SLOT + 1)):
            if (other := self.renamed.get((node.name or "", slot))) is not None:
                inputs += [""] * (slot + 1 - len(inputs))
                inputs[slot] = other
        for name, value in zip(inputs, node.inputs, strict=False):
            array = patterns.constant_array(value)
            if array is not None and value is not None and name == value.name:
                self._add_constant(name, array)
        attributes = {**read_attributes(node), "outputs": len(node.outputs)}
        run = partial(OPERATORS[node.op_type], attributes)
        self.steps.append(Step(run, tuple(inputs), outputs))

    def _quantizer(self, node: ir.Node, quantize: ir.Node) -> tuple[ActivationQuantizer, float]:
        """Return the quantizer of a pair, and by how much more it dequantizes than it quantized."""
        name = str(node.meta.get("tensor", ""))
        first, second = (float(_constant(pair, 1)) for pair in (quantize, node))
        factor = second / first if first != second else 1.0
        if name in self.module.tensors:
            quantizer = self.module.activations[self.module.tensors[name]]
            assert isinstance(quantizer, ActivationQuantizer)
            return quantizer, factor
        grid = self.plan.activations
        zero_point, limits = int(_constant(node, 2)), (grid.quant_min, grid.quant_max)
        return ActivationQuantizer(second, zero_point, limits, fixed=True), factor

    def _add_constant(self, name: str, array: NDArray[Any]) -> None:
        if name not in self.module.constant_keys:
            self.module.constant_keys[name] = key = _key(name)
            self.module.register_buffer(key, _tensor(array), persistent=False)

    def _find_dead(self) -> None:
        """Note with each step which tensors nothing reads behind it."""
        last = {
            name: index for index, step in enumerate(self.steps) for name in step.inputs if name
        }
        for name, index in last.items():
            if name not in self.outputs:
                self.steps[index].dead.append(name)


def _group_by_scale(
    graph: ir.Graph, plan: Plan, quantized: Mapping[str, ir.Node]
) -> list[list[str]]:
    """Return the quantized tensors in groups: neighbours of a node that have the same range."""
    groups: dict[str, list[str]] = {name: [name] for name in quantized}
    for node in graph:
        values = (*node.inputs, *node.outputs)
        names = [
            str(value.name) for value in values if value is not None and value.name in quantized
        ]
        for first, second in itertools.pairwise(names):
            if plan.tensors[first] == plan.tensors[second] and groups[first] is not groups[second]:
                groups[first] += groups[second]
                for name in groups[second]:
                    groups[name] = groups[first]
    return list({id(group): group for group in groups.values()}.values())


def _pair_places(node: ir.Node | None, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return the places of pairs in the flat weight; none if its pairs are not limited."""
    if node is None:
        return []
    places = np.arange(np.prod(shape)).reshape(shape)
    rows = pairs.kernel_rows(node, places)
    places_of_pairs = pairs.find_pairs(rows.shape[-1], pairs.input_channels(node, shape))
    return [
        (_tensor(rows[..., firsts].reshape(-1)), _tensor(rows[..., seconds].reshape(-1)))
        for firsts, seconds in places_of_pairs
    ]


def _range(plan: Plan, name: str, quantizer: ActivationQuantizer) -> Range:
    """Return the range of a tensor that gives a quantizer's step and zero point."""
    before, grid = plan.tensors[name], plan.grid_of(name)
    step, (low, high) = np.float32(quantizer.step), quantizer.limits
    if step == np.float32(quantizer.first_step):
        return before
    if grid.symmetric:
        high = grid.symmetric_max
        low = 0 if before.low >= 0 else -high
    first, last = (np.float32((limit - quantizer.zero_point) * step) for limit in (low, high))
    # Rounded ends may need the next larger step.
    while choose_qparams(Range(float(first), float(last)), grid).scale > step:
        first, last = (np.nextafter(end, np.float32(0)) for end in (first, last))
    return Range(float(first), float(last))


def _constant(node: ir.Node, slot: int) -> NDArray[Any]:
    array = patterns.constant_array(node.inputs[slot])
    assert array is not None, "apply_plan stores it"
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().contiguous().numpy().astype(np.float32)


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _key(name: str) -> str:
    """Return a name that a module takes: without dots, and unlike an attribute."""
    return "_" + name.replace(".", "|")
