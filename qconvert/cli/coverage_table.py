"""Which operators of a model are quantized, and why the others are not."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from qconvert.cli.console import Column, Table
from qconvert.quantize.plan import Layer

MOST_REASONS = 3


def table(layers: Mapping[str, Layer]) -> Table:
    """Return a row for each operator of a plan, the most frequent first."""
    by_op: dict[str, dict[str, Layer]] = defaultdict(dict)
    for name, layer in layers.items():
        by_op[layer.op][name] = layer
    columns = [
        Column("operator"),
        Column("nodes", "right"),
        Column("int8", "right"),
        Column("left", "right"),
        Column("why", wrap=True),
    ]
    ordered = sorted(by_op.items(), key=lambda item: -len(item[1]))
    return Table(columns, [_row(op, found) for op, found in ordered])


def nodes_table(layers: Mapping[str, Layer]) -> Table:
    """Return a row for each node of a plan."""
    columns = [Column("node"), Column("operator"), Column("int8"), Column("why", wrap=True)]
    rows = [
        [name, layer.op, "" if layer.left else "yes", layer.left or layer.note]
        for name, layer in layers.items()
    ]
    return Table(columns, rows)


def _row(op: str, layers: Mapping[str, Layer]) -> list[str]:
    left = {name: layer for name, layer in layers.items() if layer.left}
    return [op, str(len(layers)), str(len(layers) - len(left)), str(len(left)), _why(layers)]


def _why(layers: Mapping[str, Layer]) -> str:
    """Return the reasons against, most frequent first, with the node where it is only one."""
    reasons = Counter(layer.left for layer in layers.values() if layer.left)
    told = []
    for reason, count in reasons.most_common(MOST_REASONS):
        names = [name for name, layer in layers.items() if layer.left == reason]
        told.append(f"{names[0] if count == 1 else count}: {reason}")
    if len(reasons) > MOST_REASONS:
        told.append(f"and {len(reasons) - MOST_REASONS} more reasons")
    notes = Counter(layer.note for layer in layers.values() if layer.note and not layer.left)
    return "; ".join(told or list(notes))
