"""From a scheme's rules to a decision for every node that could be quantized."""

from collections.abc import Iterator

import onnx_ir as ir

from qconvert.graph.observed import FLOATS, Observed
from qconvert.graph.patterns import is_standard
from qconvert.quantize.plan import Layer
from qconvert.quantize.scheme import Chosen, Scheme
from qconvert.quantize.selection import Selection, left_out


def place(
    model: ir.Model, scheme: Scheme, observed: Observed, selection: Selection
) -> dict[str, Layer]:
    """Return for each node its quantizers, or why it has none, in the order of the graph.

    Rules look at each other's results: all nodes start as quantized, and those whose needs are
    not met are taken out until nothing changes.
    """
    operators = frozenset(scheme.by_operator)
    led = frozenset(op for op, rule in scheme.by_operator.items() if rule.follows)
    kept = left_out(model.graph, selection, operators, led)
    layers: dict[ir.Node, Layer] = {}
    for node in model.graph:
        rule = scheme.by_operator.get(node.op_type)
        if rule is not None and is_standard(node):
            layer = rule.layer(node)
            why = kept.get(node.name or "", "") or next(
                filter(None, (check(node) for check in rule.checks)), ""
            )
            why = why or next(_unmeasured(node, layer, observed), "")
            layers[node] = Layer(node.op_type, left=why) if why else layer
    settle(layers, scheme)
    return {
        node.name or "": layer
        for node, layer in layers.items()
        if not layer.left or scheme.by_operator[node.op_type].computes
    }


def settle(layers: dict[ir.Node, Layer], scheme: Scheme) -> None:
    """Take out nodes whose needs are not met until all that are left have theirs."""
    chosen = Chosen(layers)
    changed = True
    while changed:
        changed = False
        for node, layer in layers.items():
            needs = () if layer.left else scheme.by_operator[node.op_type].needs
            why = next(filter(None, (need(node, chosen) for need in needs)), "")
            if why:
                layers[node] = Layer(node.op_type, left=why)
                changed = True


def rounded(node: ir.Node, layer: Layer) -> Iterator[ir.Value]:
    """Yield the tensors that a layer rounds, weights aside."""
    if layer.left:
        return
    yield from (value for slot in layer.inputs if (value := node.inputs[slot]) is not None)
    if layer.output:
        for value in node.outputs:
            if value.dtype in FLOATS and (value.uses() or value.is_graph_output()):
                yield value


def _unmeasured(node: ir.Node, layer: Layer, observed: Observed) -> Iterator[str]:
    """Yield why a range that a layer needs was not measured."""
    for value in rounded(node, layer):
        name = value.name or ""
        if name not in observed.counted and name not in observed.shares:
            why = observed.skipped.get(name, "calibration does not look at it")
            yield f"`{name}` has no range: {why}"
