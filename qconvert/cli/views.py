"""What commands print of their results: reports, coverage, calibration ranges, written models."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.cli import console
from qconvert.report.table import TextColumn, TextTable, number_columns

if TYPE_CHECKING:
    from qconvert.calibrate.calibration import Calibration
    from qconvert.calibrate.summary import Summary
    from qconvert.core.scales import Grid
    from qconvert.measure.layer_errors import LayerError
    from qconvert.measure.mixed_result import MixedResult
    from qconvert.quantize.plan import LayerPlan
    from qconvert.report.model import Report

REPORT_TABLES = ("size", "latency", "accuracy", "overview")
MAX_REASONS = 3
SPARKLINE_BLOCKS = " ▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 16


def finish(
    report: "Report", tables: Sequence[str], *, as_json: bool, page: Path | None = None
) -> None:
    """Print a report, as JSON or in tables; then fail with exit code 1 if a gate failed."""
    from qconvert.report import gates

    if as_json:
        from qconvert.report.json_file import to_json

        console.write_json(to_json(report))
    else:
        show_report(report, tables)
    if page is not None:
        console.info(f"report: {page}")
    gates.require_passed(report, shown=not as_json)


def show_report(report: "Report", names: Sequence[str] = REPORT_TABLES) -> None:
    """Print tables of a report, then its failed gates, notes and verdict."""
    from qconvert.report import tables, terminal

    makers: dict[str, Callable[[Report], TextTable]] = {
        "size": tables.size_table,
        "latency": partial(tables.latency_table, bars=True),
        "timing": tables.timing_table,
        "accuracy": tables.accuracy_table,
        "overview": tables.overview_table,
    }
    _print_tables(*(makers[name](report) for name in names))
    console.write(terminal.closing_text(report))


def show_search(mix: "MixedResult", sizes: Mapping[str, int]) -> None:
    """Print the blocks and trials of a search, its result and the reason for it."""
    from qconvert.report import tables, terminal

    trials = [tables.block_table(mix), tables.trial_table(mix)] if mix.gains else []
    _print_tables(*trials, tables.search_result_table(mix, sizes))
    console.write("\n".join(terminal.wrap_text(mix.why)))


def show_layer_errors(layers: "Sequence[LayerError]") -> None:
    """Print the errors of layers, and the layers that make the largest."""
    from qconvert.core import number_format
    from qconvert.measure import layer_errors
    from qconvert.report import tables, terminal

    worst = [
        f"`{layer_errors.layer_label(layer)}` ({number_format.with_db(layer.made_db or 0.0)})"
        for layer in layer_errors.worst_layers(layers, 3)
    ]
    if worst:
        summary = f"the largest errors are made by {', '.join(worst)}"
    elif all(layer.made_db == math.inf for layer in layers):
        summary = "there is no error at all"
    else:
        summary = "which layers make an error is not known"
    _print_tables(tables.layer_table(layers))
    console.write("\n".join(terminal.wrap_text(summary)))


def _print_tables(*tables: TextTable) -> None:
    from qconvert.report import terminal

    for table in tables:
        console.write(table.title)
        console.write_table(table)
        if table.footnotes:
            console.write(terminal.wrapped_footnotes(table))
        console.write("")


def show_coverage(layers: "Mapping[str, LayerPlan]") -> None:
    """Print a row per operator, the most frequent first: how many nodes are quantized, why not."""
    by_operator: dict[str, list[tuple[str, LayerPlan]]] = defaultdict(list)
    for name, layer in layers.items():
        by_operator[layer.op].append((name, layer))
    rows = []
    for operator, nodes in sorted(by_operator.items(), key=lambda item: -len(item[1])):
        in_float = sum(bool(layer.left) for _, layer in nodes)
        counts = (len(nodes), len(nodes) - in_float, in_float)
        rows.append([operator, *map(str, counts), _reasons(nodes)])
    numbers = number_columns("nodes", "int8", "left")
    columns = [TextColumn("operator"), *numbers, TextColumn("why", wrap=True)]
    console.write_table(TextTable(columns, rows))


def show_node_coverage(layers: "Mapping[str, LayerPlan]") -> None:
    """Print a row per node: whether it is quantized, and why not."""
    titles = ("node", "operator", "int8")
    rows = [
        [name, layer.op, "" if layer.left else "yes", layer.left or layer.note]
        for name, layer in layers.items()
    ]
    columns = [*map(TextColumn, titles), TextColumn("why", wrap=True)]
    console.write_table(TextTable(columns, rows))


def _reasons(nodes: "Sequence[tuple[str, LayerPlan]]") -> str:
    """Return why nodes stay in float, most frequent reason first; a single node is named."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, layer in nodes:
        if layer.left:
            names[layer.left].append(name)
    if not names:
        return "; ".join(dict.fromkeys(layer.note for _, layer in nodes if layer.note))
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    texts = [
        f"{affected[0] if len(affected) == 1 else len(affected)}: {reason}"
        for reason, affected in ordered[:MAX_REASONS]
    ]
    if len(ordered) > MAX_REASONS:
        texts.append(f"and {len(ordered) - MAX_REASONS} more reasons")
    return "; ".join(texts)


def range_rows(
    calibration: "Calibration", methods: Sequence[str], grid: "Grid"
) -> list[dict[str, Any]]:
    """Return a JSON object for each tensor with counted values, in the order of the graph."""
    from qconvert.calibrate.histogram import clipped_share, equal_width_counts, range_drift
    from qconvert.calibrate.methods import compute_ranges

    ranges = {name: compute_ranges(calibration.summaries, name, grid) for name in methods}

    def kept(name: str, tensor: str, summary: "Summary") -> dict[str, object]:
        limits = ranges[name][tensor]
        share = clipped_share(summary, limits)
        return {"method": name, "low": limits.low, "high": limits.high, "clipped": share}

    return [
        {
            "tensor": tensor,
            "low": summary.low,
            "high": summary.high,
            "kept": [kept(name, tensor, summary) for name in methods],
            "drift": range_drift(summary),
            "histogram": equal_width_counts(summary, SPARKLINE_WIDTH).tolist(),
        }
        for tensor, summary in calibration.summaries.items()
        if summary.size
    ]


def show_ranges(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Print extremes, the range and clipping of each method, and a sparkline of the values."""
    columns = [TextColumn("tensor")]
    columns += [TextColumn(title, "right", rank=2) for title in ("min", "max")]
    for name in methods:
        columns += [TextColumn(name, "right"), TextColumn("clipped", "right", rank=1)]
    columns.append(TextColumn("values, log scale", rank=3))
    cells = []
    for row in rows:
        line = [row["tensor"], f"{row['low']:.4g}", f"{row['high']:.4g}"]
        for kept in row["kept"]:
            line += [f"{kept['low']:.4g} … {kept['high']:.4g}", f"{100 * kept['clipped']:.3f} %"]
        cells.append([*line, sparkline(row["histogram"])])
    console.write_table(TextTable(columns, cells))


def ranges_json(calibration: "Calibration", rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return the rows with the origin of the calibration."""
    origin = calibration.origin
    return {
        "fingerprint": origin.fingerprint,
        "images": int(calibration.image_indices.size),
        "preprocessing": origin.preprocessing,
        "runtime": origin.runtime,
        "exact": origin.exact,
        "tensors": list(rows),
    }


def sparkline(counts: Sequence[float]) -> str:
    """Draw counts as blocks on a log scale, the largest count as a full block."""
    top = math.log1p(max(counts, default=0.0)) or 1.0
    steps = len(SPARKLINE_BLOCKS) - 1
    heights = [round(steps * math.log1p(max(0.0, count)) / top) for count in counts]
    return "".join(SPARKLINE_BLOCKS[height] for height in heights)


def model_file_json(path: Path) -> dict[str, object]:
    """Return path, files, size and hash of a written ONNX model, external data included."""
    from qconvert.core import onnx_io
    from qconvert.core.cache import file_sha256

    files = onnx_io.model_files(path)
    return {
        "model": str(path),
        "files": [str(file) for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": file_sha256(path),
    }
