"""`qconvert inspect`."""

from dataclasses import asdict
from typing import Any

import click

from qconvert.cli import console, options, settings, views
from qconvert.core.config import ExportConfig
from qconvert.report.table import TextColumn, TextTable, number_columns, text_columns


@options.command("qconvert inspect resnet50.onnx", "qconvert inspect resnet50.onnx --nodes --json")
@click.argument("model")
@options.source_options
@options.flag("--nodes", "List all nodes in order instead of operators.")
@options.flag("--quantized", "Show which nodes are or would be quantized, and why not.")
@options.choice("--backend", options.BACKENDS, "Backend whose scheme is applied to a float model.")
@options.json_option
def command(model: str, **chosen: Any) -> None:
    """Show the inputs, outputs, operators and sizes of MODEL, an ONNX file or any other source.

    With --quantized, show instead which nodes of a quantized file are computed in integers, or
    which of a float model would be on a backend, and why the others are not.
    """
    from qconvert.core import config_file

    config = config_file.load(None, settings.from_options(model, chosen))
    if not chosen["quantized"]:
        _show_model(model, config.export, chosen)
        return
    from qconvert.run.context import open_context
    from qconvert.run.quantize import inspect_layers

    layers = inspect_layers(open_context(config, trust=chosen["trust"]), chosen["backend"])
    if chosen["as_json"]:
        rows = {name: asdict(layer) for name, layer in layers.items()}
        console.write_json({"model": model, "layers": rows})
    elif chosen["nodes"]:
        columns = [*text_columns("node", "operator", "int8"), *text_columns("why", wrap=True)]
        cells = [
            [name, layer.op, "" if layer.left else "yes", layer.left or layer.note]
            for name, layer in layers.items()
        ]
        console.write_table(TextTable(columns, cells))
    else:
        views.show_coverage(layers)


def _show_model(model: str, export: ExportConfig, chosen: dict[str, Any]) -> None:
    from qconvert import sources
    from qconvert.graph.describe import describe_model
    from qconvert.graph.passes import infer_shapes

    source = sources.load(model, export, trust=chosen["trust"])
    summary = describe_model(infer_shapes(source.model)[0])
    if chosen["as_json"]:
        result = {"model": model, **asdict(summary)}
        for side in ("inputs", "outputs"):
            result[side] = [
                {"name": spec.name, "dtype": str(spec.dtype), "shape": spec.shape}
                for spec in getattr(summary, side)
            ]
        if not chosen["nodes"]:
            del result["nodes"]
        console.write_json(result)
        return
    size = f"{_count(summary.parameters)} parameters, {summary.weight_bytes / 1e6:.1f} MB"
    producer = f", by {summary.producer}" if summary.producer else ""
    console.write(f"{model}   opset {summary.opset}, {size}{producer}")
    sides = [f"  input   {spec}" for spec in summary.inputs]
    sides += [f"  output  {spec}" for spec in summary.outputs]
    console.write(*sides, "", "")
    rows = []
    if chosen["nodes"]:
        columns = [*text_columns("node", "operator"), TextColumn("output", rank=2)]
        columns += [*number_columns("parameters", rank=3), *number_columns("MACs", rank=1)]
        for node in summary.nodes:
            shape = node.outputs[0].partition(": ")[2] if node.outputs else ""
            counts = map(_count, (node.parameters, node.macs))
            rows.append([node.name or "-", node.op, shape, *counts])
    else:
        total = sum(operator.macs or 0 for operator in summary.operators)
        columns = [*text_columns("operator"), *number_columns("nodes", "parameters", "MACs")]
        columns += number_columns("share", rank=1)
        for operator in summary.operators:
            share = f"{100 * operator.macs / total:.1f} %" if operator.macs else ""
            counts = map(_count, (operator.parameters, operator.macs))
            rows.append([operator.op, str(operator.nodes), *counts, share])
    console.write_table(TextTable(columns, rows))
    if summary.quantized:
        console.write("\nalready quantized: it contains Q/DQ nodes, which qconvert keeps unchanged")


def _count(number: int | None) -> str:
    """Write a count with three digits and a unit; nothing for zero, which only fills a table."""
    if not number:
        return "unknown" if number is None else ""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            digits = ".3g" if number < 1000 * size else ".0f"
            return f"{number / size:{digits}}{unit}"
    return str(number)
