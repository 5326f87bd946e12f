"""What a backend requires of a quantized graph: two integer grids, and rules as data."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.core.scales import Grid
from qconvert.quantize.plan import LayerPlan

QuantizedNodes = Set[ir.Node]

# Both return the reason to leave a node in float, or nothing. A check looks at the node alone; a
# need depends on the nodes that are quantized so far.
Check = Callable[[ir.Node], str]
Need = Callable[[ir.Node, QuantizedNodes], str]


@dataclass(frozen=True)
class OperatorRule:
    """How some operators are quantized, unless a check or a need speaks against it.

    The plan does not list an operator that only moves values (`computes` is false) if it stays in
    float. One that `fuses_with_producer` follows the operator before it: `--only` need not name it.
    """

    operators: frozenset[str]
    layer: Callable[[ir.Node], LayerPlan]
    checks: tuple[Check, ...] = ()
    needs: tuple[Need, ...] = ()
    computes: bool = True
    fuses_with_producer: bool = False


@dataclass(frozen=True)
class Scheme:
    """The quantization that a backend requires.

    All inputs and outputs of an operator in `shared_scale` get one scale.
    """

    name: str
    activations: Grid
    weights: Grid
    integer_bias: bool
    rules: tuple[OperatorRule, ...]
    shared_scale: frozenset[str] = frozenset()
    rules_by_operator: dict[str, OperatorRule] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = {op: rule for rule in self.rules for op in rule.operators}
        object.__setattr__(self, "rules_by_operator", table)


def leave_in_float(*operators: str, why: str) -> OperatorRule:
    """Return a rule that leaves operators in float, with the reason that users read."""
    return OperatorRule(
        frozenset(operators), lambda node: LayerPlan(node.op_type), checks=(lambda node: why,)
    )
