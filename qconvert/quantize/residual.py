"""Which input of an addition an engine fuses with a convolution, and which one it only adds."""

import onnx_ir as ir

from qconvert.graph import patterns
from qconvert.graph.observed import CONVOLUTIONS, RECTIFIERS

_FUSED = RECTIFIERS | {"BatchNormalization", "MaxPool", "Identity"}


def residual_slot(node: ir.Node) -> int | None:
    """Return the place of the input that is only added; None where nothing can be fused.

    Where both sides come from a convolution, the one further from the point where they part is
    fused: the other one is the shortcut.
    """
    if len(node.inputs) != 2:
        return None
    behind = [convolution_behind(value) for value in node.inputs]
    if behind[0] is None and behind[1] is None:
        return None
    if behind[0] is None or behind[1] is None:
        slot = 0 if behind[0] is None else 1
    else:
        lengths = _lengths(node)
        slot = 0 if lengths[0] < lengths[1] else 1
    # What the other branch is made from cannot wait to be fused with the addition.
    fused = behind[1 - slot]
    before = _distances(node.inputs[slot])
    return None if fused is not None and fused.outputs[0] in before else slot


def convolution_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the convolution that makes a tensor, seen through what is fused with it."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in CONVOLUTIONS:
            return node
        value = _through(node)
    return None


def _through(node: ir.Node) -> ir.Value | None:
    """Return what a fused operator works on; None where it is not one."""
    if node.op_type in _FUSED:
        return node.inputs[0]
    if node.op_type in ("Mul", "Add") and len(node.inputs) == 2:
        changing = [each for each in node.inputs if patterns.constant(each) is None]
        if len(changing) == 1:
            return changing[0]
        # What a Sigmoid makes of a tensor, times the tensor itself: SiLU.
        for gate, gated in ((0, 1), (1, 0)):
            made, other = node.inputs[gate], node.inputs[gated]
            sigmoid = made.producer() if made is not None else None
            if sigmoid is not None and "Sigmoid" in sigmoid.op_type and sigmoid.inputs[0] is other:
                return other
    return None


def _lengths(node: ir.Node) -> tuple[int, int]:
    """Return how many nodes lie between each input and the nearest one that both come from."""
    first, second = (_distances(value) for value in node.inputs)
    common = first.keys() & second.keys()
    if not common:
        return 0, 0
    nearest = min(common, key=lambda value: (first[value] + second[value], value.name or ""))
    return first[nearest], second[nearest]


def _distances(value: ir.Value | None) -> dict[ir.Value, int]:
    """Return for each tensor before `value` how few nodes lie between the two."""
    found: dict[ir.Value, int] = {}
    level = [value] if value is not None else []
    steps = 0
    while level:
        found.update((each, steps) for each in level)
        made_by = {each.producer() for each in level} - {None}
        before = (each for node in made_by if node is not None for each in node.inputs)
        level = list({each for each in before if each is not None and each not in found})
        steps += 1
    return found
