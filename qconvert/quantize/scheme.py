"""What a backend wants of a quantized graph: two grids, and rules as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.quantize.plan import Layer
from qconvert.scales import Grid


@dataclass(frozen=True)
class Chosen:
    """The nodes that are quantized so far as is known, while rules still look at each other."""

    layers: Mapping[ir.Node, Layer]

    def holds(self, node: ir.Node | None) -> bool:
        """Whether a node is quantized."""
        layer = self.layers.get(node) if node is not None else None
        return layer is not None and not layer.left

    def makes(self, value: ir.Value | None) -> bool:
        """Whether a quantized node makes this tensor."""
        return value is not None and self.holds(value.producer())

    def reads(self, value: ir.Value) -> bool:
        """Whether a quantized node reads this tensor."""
        return any(self.holds(node) for node, _ in value.uses())


# Both say why a node is left out, or nothing. A check looks at the node alone and is asked once; a
# need depends on what happens to other nodes.
Check = Callable[[ir.Node], str]
Need = Callable[[ir.Node, Chosen], str]


@dataclass(frozen=True)
class Rule:
    """How some operators are quantized, unless a check or a need has a reason against it.

    What does not compute anything is not worth a word where it stays in float. One that `follows`
    the operator before it is not chosen by itself: `--only` need not name it.
    """

    operators: frozenset[str]
    layer: Callable[[ir.Node], Layer]
    checks: tuple[Check, ...] = ()
    needs: tuple[Need, ...] = ()
    computes: bool = True
    follows: bool = False


@dataclass(frozen=True)
class Scheme:
    """What a backend wants.

    All that goes in and out of an operator in `shared` gets one scale.
    """

    name: str
    activations: Grid
    weights: Grid
    integer_bias: bool
    rules: tuple[Rule, ...]
    shared: frozenset[str] = frozenset()
    by_operator: dict[str, Rule] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = {op: rule for rule in self.rules for op in rule.operators}
        object.__setattr__(self, "by_operator", table)


def left(*operators: str, why: str) -> Rule:
    """Return a rule that leaves operators in float, with the reason that users read."""
    return Rule(frozenset(operators), lambda node: Layer(node.op_type), checks=(lambda node: why,))
