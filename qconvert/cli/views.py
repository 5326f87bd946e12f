"""A report on the terminal: three tables, the overview, what to know, and the verdict last."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from qconvert.calibrate import methods as registry
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.histogram import clipped_share, equal_width_counts, range_drift
from qconvert.cli import console
from qconvert.core.scales import Grid, Range
from qconvert.quantize.plan import LayerPlan
from qconvert.report.table import TextColumn, TextTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qconvert.measure.layer_errors import LayerError
    from qconvert.measure.mixed_result import MixedResult
    from qconvert.report.model import Report


def show_report(report: "Report") -> None:
    """Write the report on stdout."""
    from qconvert.report import tables, terminal

    three = (
        tables.size_table(report),
        terminal.latency_table_with_bars(report),
        tables.accuracy_table(report),
    )
    for sheet in (*three, tables.overview_table(report)):
        _print_table(sheet)
        console.write("")
    console.write(terminal.closing_text(report))


def show_latencies(report: "Report") -> None:
    """Write what timing found on stdout."""
    from qconvert.report import tables, terminal

    for sheet in (terminal.latency_table_with_bars(report), tables.timing_table(report)):
        _print_table(sheet)
        console.write("")
    console.write(terminal.closing_text(report))


def show_accuracies(report: "Report") -> None:
    """Write what comparing answers found on stdout."""
    from qconvert.report import tables, terminal

    _print_table(tables.accuracy_table(report))
    console.write("")
    console.write(terminal.closing_text(report))


def show_search(mix: "MixedResult", sizes: "Mapping[str, int]") -> None:
    """Write what a search found on stdout."""
    from qconvert.report import tables, terminal

    found = [tables.block_table(mix), tables.trial_table(mix)] if mix.gains else []
    for sheet in (*found, tables.search_result_table(mix, sizes)):
        _print_table(sheet)
        console.write("")
    console.write("\n".join(terminal.wrap_text(mix.why)))


def show_layer_errors(found: "Sequence[LayerError]") -> None:
    """Write the errors of layers on stdout, and which of them make the most."""
    from qconvert.core import number_format
    from qconvert.measure import layer_errors
    from qconvert.report import layer_tables, terminal

    _print_table(layer_tables.layer_table(found))
    worst = [
        f"`{layer_errors.layer_label(each)}` ({number_format.with_db(each.made_db or 0.0)})"
        for each in layer_errors.worst_layers(found, 3)
    ]
    known = all(each.made_db == math.inf for each in found)
    none = "there is no error at all" if known else "which layers make an error is not known"
    told = f"most error is made by {', '.join(worst)}" if worst else none
    console.write("\n" + "\n".join(terminal.wrap_text(told)))


def _print_table(sheet: TextTable) -> None:
    from qconvert.report import terminal

    console.write(sheet.title)
    console.write_table(sheet)
    if sheet.footnotes:
        console.write(terminal.wrapped_footnotes(sheet))


MAX_REASONS = 3


def coverage_table(layers: Mapping[str, LayerPlan]) -> TextTable:
    """Return a row for each operator of a plan, the most frequent first."""
    by_op: dict[str, dict[str, LayerPlan]] = defaultdict(dict)
    for name, layer in layers.items():
        by_op[layer.op][name] = layer
    columns = [
        TextColumn("operator"),
        TextColumn("nodes", "right"),
        TextColumn("int8", "right"),
        TextColumn("left", "right"),
        TextColumn("why", wrap=True),
    ]
    ordered = sorted(by_op.items(), key=lambda item: -len(item[1]))
    return TextTable(columns, [_coverage_row(op, found) for op, found in ordered])


def node_coverage_table(layers: Mapping[str, LayerPlan]) -> TextTable:
    """Return a row for each node of a plan."""
    columns = [
        TextColumn("node"),
        TextColumn("operator"),
        TextColumn("int8"),
        TextColumn("why", wrap=True),
    ]
    rows = [
        [name, layer.op, "" if layer.left else "yes", layer.left or layer.note]
        for name, layer in layers.items()
    ]
    return TextTable(columns, rows)


def _coverage_row(op: str, layers: Mapping[str, LayerPlan]) -> list[str]:
    left = {name: layer for name, layer in layers.items() if layer.left}
    return [op, str(len(layers)), str(len(layers) - len(left)), str(len(left)), _reasons(layers)]


def _reasons(layers: Mapping[str, LayerPlan]) -> str:
    """Return the reasons against, most frequent first, with the node where it is only one."""
    reasons = Counter(layer.left for layer in layers.values() if layer.left)
    told = []
    for reason, count in reasons.most_common(MAX_REASONS):
        names = [name for name, layer in layers.items() if layer.left == reason]
        told.append(f"{names[0] if count == 1 else count}: {reason}")
    if len(reasons) > MAX_REASONS:
        told.append(f"and {len(reasons) - MAX_REASONS} more reasons")
    notes = Counter(layer.note for layer in layers.values() if layer.note and not layer.left)
    return "; ".join(told or list(notes))


SPARKLINE_BLOCKS = " ▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 16


@dataclass(frozen=True)
class MethodRange:
    """What one method keeps of a tensor, and the share of values outside."""

    method: str
    low: float
    high: float
    clipped: float


@dataclass(frozen=True)
class RangeRow:
    """One tensor."""

    tensor: str
    low: float
    high: float
    kept: tuple[MethodRange, ...]
    drift: float
    histogram: tuple[float, ...]


def range_rows(found: Calibration, methods: Sequence[str], grid: Grid) -> list[RangeRow]:
    """Return a row for each tensor that was counted, in the order of the graph."""
    by_method = {name: registry.compute_ranges(found.summaries, name, grid) for name in methods}
    return [
        RangeRow(
            tensor,
            seen.low,
            seen.high,
            tuple(
                _method_range(
                    name, by_method[name][tensor], clipped_share(seen, by_method[name][tensor])
                )
                for name in methods
            ),
            range_drift(seen),
            tuple(float(each) for each in equal_width_counts(seen, SPARKLINE_WIDTH)),
        )
        for tensor, seen in found.summaries.items()
        if seen.size
    ]


def ranges_table(rows: Sequence[RangeRow], methods: Sequence[str]) -> TextTable:
    """Return the rows as people read them; the tensor's shape of values comes last."""
    columns = [
        TextColumn("tensor"),
        TextColumn("min", "right", rank=2),
        TextColumn("max", "right", rank=2),
    ]
    for name in methods:
        columns += [TextColumn(name, "right"), TextColumn("clipped", "right", rank=1)]
    columns += [TextColumn("values, log scale", rank=3)]
    return TextTable(columns, [_range_cells(row) for row in rows])


def ranges_json(found: Calibration, rows: Sequence[RangeRow]) -> dict[str, object]:
    """Return everything the table shows, and where it comes from."""
    return {
        "fingerprint": found.origin.fingerprint,
        "images": int(found.image_indices.size),
        "preprocessing": found.origin.preprocessing,
        "runtime": found.origin.runtime,
        "exact": found.origin.exact,
        "tensors": [asdict(row) for row in rows],
    }


def _method_range(method: str, kept: Range, clipped: float) -> MethodRange:
    return MethodRange(method, kept.low, kept.high, clipped)


def _range_cells(row: RangeRow) -> list[str]:
    cells = [row.tensor, f"{row.low:.4g}", f"{row.high:.4g}"]
    for kept in row.kept:
        cells += [f"{kept.low:.4g} … {kept.high:.4g}", f"{100 * kept.clipped:.3f} %"]
    return [*cells, sparkline(row.histogram)]


def sparkline(counts: Sequence[float]) -> str:
    """Draw counts as blocks; a block more is a power of ten or so more values."""
    from math import log1p

    top = log1p(max(counts, default=0.0)) or 1.0
    heights = [log1p(max(0.0, count)) / top for count in counts]
    return "".join(
        SPARKLINE_BLOCKS[round(height * (len(SPARKLINE_BLOCKS) - 1))] for height in heights
    )
