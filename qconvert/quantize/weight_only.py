"""Weight-only formats: the weights of a graph that become integers, and why the others do not.

Activations and all arithmetic stay in float, so that placing them needs no image. A product or a
table of embeddings has a scale for each group of inputs, a convolution for each output channel.
"""

from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from qconvert.core.errors import UsageError
from qconvert.core.scales import Grid
from qconvert.graph import patterns
from qconvert.quantize.dynamic import one_activation, untransposed_input, weighted_layer
from qconvert.quantize.plan import Kernels, LayerPlan, WeightSlot
from qconvert.quantize.scheme import (
    MIN_CHANNELS,
    SUBGRAPHS,
    OperatorRule,
    Scheme,
    constant_weight,
    float_activations,
    leave_in_float,
    matrix_weight,
)

DEFAULT_GROUP = 64
PRODUCTS = frozenset({"MatMul", "Gemm"})
TABLES = frozenset({"Gather"})
TOO_LARGE = "fewer than the group of"


def weight_only_scheme(
    name: str,
    weights: Grid,
    operators: Collection[str],
    kernels: Kernels,
    group: int | None = DEFAULT_GROUP,
) -> Scheme:
    """Return the scheme of a backend that has integer weights of these operators."""
    rules = _rules(frozenset(operators), weights, kernels, group)
    return Scheme(name, Grid(), weights, False, rules, group=group, kernels=kernels)


def regroup(scheme: Scheme, weights: Grid, group: int | None) -> Scheme:
    """Return a weight-only scheme with another grid of weights and another group."""
    kinds = weighted_layer, table_layer
    operators = {op for rule in scheme.rules if rule.layer in kinds for op in rule.operators}
    return weight_only_scheme(scheme.name, weights, operators, scheme.kernels, group)


def require_groups(layers: Mapping[str, LayerPlan], group: int | None) -> None:
    """Refuse a group that is larger than every weight."""
    if any(not layer.left for layer in layers.values()):
        return
    reasons = [layer.left for layer in layers.values() if TOO_LARGE in layer.left]
    if reasons:
        most = max(int(reason.split()[1]) for reason in reasons)
        raise UsageError(
            f"`--group {group}` is larger than every weight of this model: none has more than "
            f"{most} inputs",
            hint="use a smaller one: `--group 32`, or `--group channel` for one scale per output",
        )


def _rules(
    operators: frozenset[str], weights: Grid, kernels: Kernels, group: int | None
) -> tuple[OperatorRule, ...]:
    fits = partial(fits_group, group=group, whole=kernels == "onnx")
    products = (one_activation, constant_weight, float_activations, untransposed_input)
    convolutions = patterns.CONVOLUTIONS & operators
    rules = [
        OperatorRule(
            PRODUCTS & operators, weighted_layer, (*products, matrix_weight, own_weight, fits)
        ),
        # The plan does not list the others, which look up shapes and the like.
        OperatorRule(
            TABLES & operators, table_layer, (looks_up_rows, own_weight, fits), computes=False
        ),
        leave_in_float(
            *(patterns.CONVOLUTIONS - convolutions),
            why=f"the backend has no convolution with {weights.bits}-bit weights",
        ),
        SUBGRAPHS,
    ]
    if convolutions:
        checks = (constant_weight, float_activations, own_weight)
        rules.append(OperatorRule(convolutions, weighted_layer, checks))
    return tuple(rule for rule in rules if rule.operators)


def table_layer(node: ir.Node) -> LayerPlan:
    """Quantize a table of embeddings, with scales for each row."""
    return LayerPlan(node.op_type, weight=WeightSlot(0, 0))


def looks_up_rows(node: ir.Node) -> str:
    """Refuse a Gather of anything but rows of a constant float matrix."""
    array = patterns.constant_array(node.inputs[0])
    is_table = array is not None and array.ndim == 2 and array.dtype == np.float32
    by_rows = node.attributes.get_int("axis", 0) == 0
    return "" if is_table and by_rows else "it looks up no rows of a constant matrix"


def own_weight(node: ir.Node) -> str:
    """Refuse a weight that other nodes read too, or the graph returns."""
    value = node.inputs[0 if node.op_type in TABLES else 1]
    shared = value is not None and (len(value.uses()) > 1 or value.is_graph_output())
    return "its weight has other readers" if shared else ""


def fits_group(node: ir.Node, group: int | None, whole: bool) -> str:
    """Refuse a weight with fewer inputs than a group, or `whole` groups that it does not fill."""
    inputs = count_inputs(node)
    if inputs < MIN_CHANNELS:
        return f"its {inputs} inputs are too few for integer kernels"
    if group is not None and inputs < group:
        return f"its {inputs} inputs are {TOO_LARGE} {group}"
    if group is not None and whole and inputs % group:
        return f"its {inputs} inputs do not fill groups of {group}"
    return ""


def count_inputs(node: ir.Node) -> int:
    """Return how many inputs an output of a product has, or the length of a table's rows."""
    slot = 0 if node.op_type in TABLES else 1
    array = patterns.constant_array(node.inputs[slot])
    assert array is not None
    return int(array.shape[input_axis(node)])


def input_axis(node: ir.Node) -> int:
    """Return the axis along which groups lie in the weight of a product or a table."""
    return 1 if node.op_type in TABLES or patterns.is_transposed(node) else 0
