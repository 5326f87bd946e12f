"""`qconvert inspect`."""

from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.report.table import TextColumn, TextTable

# Named here too, so that `--help` needs not import them; a test compares.
BACKENDS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")

if TYPE_CHECKING:
    from qconvert.graph.describe import ModelInfo

EXAMPLES = """\b
Examples:
  qconvert inspect resnet50.onnx
  qconvert inspect resnet50.onnx --nodes --json"""


@click.command(epilog=EXAMPLES)
@click.argument("model")
@options.source_options
@click.option("--nodes", is_flag=True, help="Every node, in order, instead of every operator.")
@click.option("--quantized", is_flag=True, help="What is quantized, or would be, and why not.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="cpu",
    help="Whose scheme to ask about a float model (default: cpu).",
)
@options.json_option
@options.verbosity_options
def command(model: str, **chosen: Any) -> None:
    """Show the inputs, outputs, operators and sizes of MODEL, an ONNX file or any other source.

    With --quantized it shows instead which nodes of a quantized file are computed in integers, or
    which of a float model would be on a backend, and why the others are not.
    """
    if chosen["quantized"]:
        _quantized(model, chosen)
        return
    from qconvert import sources
    from qconvert.core import config_file
    from qconvert.graph.describe import describe_model
    from qconvert.graph.simplify import infer_shapes

    export = config_file.load(None, settings.from_options(None, chosen)).export
    source = sources.load(model, export, trust=chosen["trust"])
    info = describe_model(infer_shapes(source.model)[0])
    if chosen["as_json"]:
        console.write_json(_as_json(model, info, nodes=chosen["nodes"]))
        return
    console.write(_head(model, info))
    console.write_table(_nodes(info) if chosen["nodes"] else _operators(info))
    if info.quantized:
        console.write("\nquantized already: it holds Q/DQ nodes, which qconvert keeps as they are")


def _quantized(model: str, chosen: dict[str, Any]) -> None:
    from qconvert.cli import views
    from qconvert.core import cache, config_file
    from qconvert.run.quantize import inspect_layers

    config = config_file.load(None, settings.from_options(model, chosen))
    layers = inspect_layers(config, chosen["backend"], cache.open_default(), trust=chosen["trust"])
    if chosen["as_json"]:
        from dataclasses import asdict

        console.write_json(
            {"model": model, "layers": {name: asdict(each) for name, each in layers.items()}}
        )
        return
    shape = views.node_coverage_table if chosen["nodes"] else views.coverage_table
    console.write_table(shape(layers))


def _head(model: str, info: "ModelInfo") -> str:
    lines = [
        f"{model}   opset {info.opset}, {_count(info.parameters)} parameters, "
        f"{info.weight_bytes / 1e6:.1f} MB" + (f", by {info.producer}" if info.producer else "")
    ]
    lines += [f"  input   {spec}" for spec in info.inputs]
    lines += [f"  output  {spec}" for spec in info.outputs]
    return "\n".join([*lines, "\n"])


def _operators(info: "ModelInfo") -> TextTable:
    total = sum(each.macs or 0 for each in info.operators)
    columns = [
        TextColumn("operator"),
        TextColumn("nodes", "right"),
        TextColumn("parameters", "right"),
        TextColumn("MACs", "right"),
        TextColumn("share", "right", rank=1),
    ]
    rows = [
        [
            each.op,
            str(each.nodes),
            _count(each.parameters),
            _macs(each.macs),
            f"{100 * each.macs / total:.1f} %" if each.macs else "",
        ]
        for each in info.operators
    ]
    return TextTable(columns, rows)


def _nodes(info: "ModelInfo") -> TextTable:
    columns = [
        TextColumn("node"),
        TextColumn("operator"),
        TextColumn("output", rank=2),
        TextColumn("parameters", "right", rank=3),
        TextColumn("MACs", "right", rank=1),
    ]
    rows = [
        [
            each.name or "-",
            each.op,
            each.outputs[0].partition(": ")[2] if each.outputs else "",
            _count(each.parameters),
            _macs(each.macs),
        ]
        for each in info.nodes
    ]
    return TextTable(columns, rows)


def _macs(macs: int | None) -> str:
    return "unknown" if macs is None else _count(macs)


def _count(number: int) -> str:
    """Write a count with three digits and a unit; nothing for zero, which only fills a table."""
    if number == 0:
        return ""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return (
                f"{number / size:.3g}{unit}"
                if number < 1000 * size
                else f"{number / size:.0f}{unit}"
            )
    return str(number)


def _as_json(model: str, info: "ModelInfo", *, nodes: bool) -> dict[str, object]:
    from dataclasses import asdict

    told = asdict(info)
    for side in ("inputs", "outputs"):
        told[side] = [
            {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}
            for spec in getattr(info, side)
        ]
    if not nodes:
        del told["nodes"]
    return {"model": model, **told}
