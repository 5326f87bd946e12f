"""What a backend requires of a quantized graph: two integer grids, and rules as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.core.scales import Grid
from qconvert.quantize.plan import LayerPlan


@dataclass(frozen=True)
class QuantizedNodes:
    """The nodes that are quantized so far, while rules still depend on each other's results."""

    layers: Mapping[ir.Node, LayerPlan]

    def contains(self, node: ir.Node | None) -> bool:
        """Whether a node is quantized."""
        layer = self.layers.get(node) if node is not None else None
        return layer is not None and not layer.left

    def produces(self, value: ir.Value | None) -> bool:
        """Whether a quantized node computes this tensor."""
        return value is not None and self.contains(value.producer())

    def consumes(self, value: ir.Value) -> bool:
        """Whether a quantized node reads this tensor."""
        return any(self.contains(node) for node, _ in value.uses())


# Both return the reason to leave a node in float, or nothing. A check looks at the node alone; a
# need depends on which other nodes are quantized.
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
