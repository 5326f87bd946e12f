"""Graphs before and after quantization, as readable lines."""

import onnx_ir as ir

from qconvert import backends
from qconvert.core import onnx_io
from qconvert.core.scales import Range
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import find_observed_tensors
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import Selection, place_quantizers, share_ranges
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.quantize.scheme import Scheme
from tests.models import floats, from_text

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
NONE = Selection()


def scheme(name: str) -> Scheme:
    """Return the scheme of a backend."""
    required = backends.requirements(name).schemes.get("int8")
    assert required is not None
    return required


def model(body: str, signature: str, **shapes: tuple[int, ...]) -> ir.Model:
    """Parse a graph; weights get random values of these shapes."""
    weights = {name: floats(*shape) for name, shape in shapes.items()}
    return infer_shapes(from_text(f"{HEAD}net {signature} {{ {body} }}", **weights))[0]


def layers(before: ir.Model, name: str, selection: Selection = NONE) -> dict[str, LayerPlan]:
    """Return the layers that a backend's scheme gives to the nodes, by their first output."""
    for node in before.graph:
        node.name = node.outputs[0].name
    return place_quantizers(before, scheme(name), find_observed_tensors(before), selection)


def planned(before: ir.Model, name: str, selection: Selection = NONE) -> Plan:
    """Return a plan with synthetic ranges that widen from tensor to tensor."""
    placed, observed = layers(before, name, selection), find_observed_tensors(before)
    ranges = {
        tensor: Range(-1.0 - number, 1.0 + number)
        for number, tensor in enumerate(observed.quantizable)
    }
    return plan_from(before, name, placed, ranges)


def plan_from(
    before: ir.Model, name: str, placed: dict[str, LayerPlan], ranges: dict[str, Range]
) -> Plan:
    """Return the plan of a backend with these layers and ranges."""
    required, aliases = scheme(name), find_observed_tensors(before).aliases
    moved = {tensor: ranges[source] for tensor, source in aliases.items() if source in ranges}
    return Plan(
        model=onnx_io.fingerprint(before),
        scheme=name,
        method="mse",
        weight_method="mse",
        activations=required.activations,
        weights=required.weights,
        integer_bias=required.integer_bias,
        portable=required.portable,
        layers=placed,
        tensors=share_ranges(before.graph, placed, ranges | moved, required.shared_scale),
    )


def after(before: ir.Model, name: str, selection: Selection = NONE) -> list[str]:
    """Return the graph that a backend gets, as lines."""
    return lines(apply_plan(before, planned(before, name, selection)))


def lines(graph: ir.Model) -> list[str]:
    """Return a line for each node; what it reads from integers is marked with `~`.

    A result that the graph returns from integers has a line of its own.
    """
    nodes = [
        f"{node.outputs[0].name} = {node.op_type}({', '.join(map(_read, node.inputs))})"
        for node in graph.graph
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]
    outputs = [
        f"return {_read(value)}" for value in graph.graph.outputs if _read(value).startswith("~")
    ]
    return nodes + outputs


def _read(value: ir.Value | None) -> str:
    if value is None:
        return ""
    back = value.producer()
    if back is None or back.op_type != "DequantizeLinear" or back.inputs[0] is None:
        return str(value.name)
    there = back.inputs[0].producer()
    if there is None:
        return "~" + str(back.inputs[0].name).removesuffix("_quantized")
    assert there.op_type == "QuantizeLinear"
    assert there.inputs[0] is not None
    return "~" + str(there.inputs[0].name)
