"""Views of results: reports, layer errors, coverage, written models."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qconvert.cli import console
from qconvert.report.table import TextTable, make_columns

if TYPE_CHECKING:
    from qconvert.measure.layer_errors import LayerError
    from qconvert.quantize.plan import LayerPlan
    from qconvert.report.model import Report

TABLES = ("size", "latency", "gpu", "accuracy", "overview")


def finish(
    report: "Report", *, as_json: bool, tables: Sequence[str] = TABLES, page: Path | None = None
) -> None:
    """Print a report, as JSON or in tables; then fail with exit code 1 if a gate failed."""
    from qconvert.report import json_file, verdict

    if as_json:
        console.write_json(json_file.to_json(report))
    else:
        show_report(report, tables)
    if page is not None:
        console.info(f"report: {page}")
    verdict.require_passed(report, shown=not as_json)


def show_report(report: "Report", names: Sequence[str] = TABLES) -> None:
    """Print tables of a report, then its failed gates, notes and verdict."""
    from qconvert.report import tables

    makers: dict[str, Callable[[Report], TextTable]] = {
        "size": tables.size_table,
        "latency": partial(tables.latency_table, bars=True),
        "gpu": tables.gpu_table,
        "timing": tables.timing_table,
        "accuracy": tables.accuracy_table,
        "overview": tables.overview_table,
    }
    print_tables(*(table for name in names if (table := makers[name](report)).rows))
    console.write(closing_text(report))


def closing_text(report: "Report") -> str:
    """Return the failed gates, the notes, and the verdict as the last line."""
    from qconvert.report import verdict

    failed = [verdict.describe_gate(gate) for gate in report.gates if not gate.passed]
    lines = [console.wrap_text(f"gate failed: {gate}", "  ") for gate in failed]
    lines += [console.wrap_text(f"note: {note}", "  ") for note in report.notes]
    if report.verdict:
        lines += [""] if report.notes else []
        lines.append(console.wrap_text(report.verdict))
    return "\n".join(lines)


def show_layer_errors(layers: "Sequence[LayerError]") -> None:
    """Print the errors of layers, and the layers that make the largest."""
    from qconvert.core import number_format
    from qconvert.measure import layer_errors
    from qconvert.report import tables

    worst = [
        f"`{layer_errors.layer_label(layer)}` ({number_format.with_db(layer.made_db or 0.0)})"
        for layer in layer_errors.worst_layers(layers, 3)
    ]
    if worst:
        summary = f"the largest errors are made by {', '.join(worst)}"
    elif all(layer.made_db == math.inf for layer in layers):
        summary = "there is no error"
    else:
        summary = "it is unknown which layers make an error"
    print_tables(tables.layer_table(layers))
    console.write(console.wrap_text(summary))


def print_tables(*tables: TextTable) -> None:
    """Print tables, each with its title and footnotes."""
    for table in tables:
        console.write(table.title)
        console.write_table(table)
        for note in table.footnotes:
            console.write(console.wrap_text(note, "  "))
        console.write("")


def show_coverage(layers: "Mapping[str, LayerPlan]") -> None:
    """Print a row per operator, the most frequent first, and why nodes are not quantized."""
    rows = []
    for operator, count in Counter(layer.op for layer in layers.values()).most_common():
        nodes = {name: layer for name, layer in layers.items() if layer.op == operator}
        reasons = Counter(layer.left for layer in nodes.values() if layer.left)
        # The most frequent reason first; a single node is named.
        why = [
            f"{left if left > 1 else next(n for n in nodes if nodes[n].left == reason)}: {reason}"
            for reason, left in reasons.most_common()
        ]
        if len(why) > 3:
            why[3:] = [f"and {len(why) - 3} more reasons"]
        why = why or list(dict.fromkeys(layer.note for layer in nodes.values() if layer.note))
        in_float = reasons.total()
        rows.append([operator, f"{count}", f"{count - in_float}", f"{in_float}", "; ".join(why)])
    columns = make_columns("l r r r w", "operator", "nodes", "int8", "left", "why")
    console.write_table(TextTable(columns, rows))


def model_file_json(path: Path) -> dict[str, object]:
    """Return path, files, size and hash of a written ONNX model, external data included."""
    from qconvert.core import onnx_io
    from qconvert.core.cache import file_sha256

    files, size = list(map(str, onnx_io.model_files(path))), onnx_io.saved_bytes(path)
    return {"model": str(path), "files": files, "bytes": size, "sha256": file_sha256(path)}
