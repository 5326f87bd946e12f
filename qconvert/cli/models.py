"""Commands on a model: `export`, `inspect` and `init`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options
from qconvert.core.config import ExportConfig
from qconvert.core.errors import UsageError
from qconvert.report.table import TextTable, make_columns

MAX_SATURATING = 5  # layers that `inspect --quantized` names


@options.command(
    "qconvert export resnet50.onnx -o clean.onnx",
    "qconvert export mypkg.nets:build --input image:1x3x224x224 --weights net.pt",
)
@click.argument("source", required=False)
@options.output("The ONNX file (default: NAME.onnx).")
@options.source_options
@options.setting_options("export", "opset", "parity-tolerance")
@options.setting_options("prepare", "skip")
@options.image_options
@options.flag("--dry-run", "Print what would be done without changing anything.")
@options.common_options
def export_command(source: str | None, output: Path | None, **chosen: Any) -> None:
    """Convert SOURCE to one clean ONNX file and check that its outputs are the same.

    SOURCE is m.onnx, net.pt2, package.module:factory, timm:NAME or torchvision:NAME. Named models
    use their pretrained weights unless --weights is given. With --images, PyTorch and ONNX are
    compared on some of them instead of on random inputs, and the preprocessing is written into the
    file.
    """
    from qconvert import sources
    from qconvert.core import config_file, onnx_io
    from qconvert.graph.clean import list_passes, require_known_passes
    from qconvert.run.export import export

    context = options.open_job(source, chosen)
    config = context.config
    path = options.output_path(output, str(config.model), ".onnx")
    if chosen["dry_run"]:
        skipped, kind = config.prepare.skip, sources.kind(str(config.model))
        passes = (item.name for item in list_passes(config.export.opset))
        require_known_passes(skipped)
        if kind in sources.FILE_KINDS and not Path(str(config.model)).is_file():
            raise UsageError(f"`{config.model}` does not exist", hint="check the path")
        console.write(f"load     {config.model} ({kind})")
        console.write(f"prepare  {', '.join(name for name in passes if name not in skipped)}")
        if kind != "ONNX file":
            console.write(f"parity   on {config.export.parity_inputs} inputs against PyTorch")
        console.write(f"write    {path}")
        return
    result = export(context, path)
    for step in result.loaded.steps:
        if step.dropped:
            console.note(f"{step.name} skipped: {step.dropped}")
        console.info(f"    {step.name}: {step.changed or 'nothing'}, {step.seconds:.2f} s", level=1)
    if result.quantized:
        console.note("this model contains Q/DQ nodes; they are kept unchanged")
    if not chosen["as_json"]:
        return
    model = result.loaded.model
    console.write_json(
        {
            **console.model_file_json(result.path),
            "opset": model.opset_imports.get("", 0),
            "inputs": [str(spec) for spec in onnx_io.inputs(model)],
            "outputs": [str(spec) for spec in onnx_io.outputs(model)],
            "quantized": result.quantized,
            "parity": asdict(result.parity) if result.parity else None,
            "steps": [asdict(step) for step in result.loaded.steps],
            "config": config_file.as_dict(config),
            "notes": list(result.loaded.source.notes),
        }
    )


@options.command("qconvert inspect resnet50.onnx", "qconvert inspect resnet50.onnx --nodes --json")
@click.argument("model")
@options.source_options
@options.flag("--nodes", "List all nodes in order instead of operators.")
@options.flag("--quantized", "Show which nodes are or would be quantized, and why not.")
@options.choice("--backend", options.BACKENDS, "Backend whose scheme is applied to a float model.")
@options.json_option
def inspect_command(model: str, **chosen: Any) -> None:
    """Show the inputs, outputs, operators and sizes of MODEL, an ONNX file or any other source.

    With --quantized, show instead which nodes of a quantized file are computed in integers, or
    which of a float model would be on a backend, and why the others are not; and whether the file
    is exact on x86 CPUs without VNNI.
    """
    from qconvert.core import config_file

    config = config_file.load(None, options.read_settings(model, chosen))
    if not chosen["quantized"]:
        _show_model(model, config.export, chosen)
        return
    from qconvert.quantize.saturation import describe_saturation
    from qconvert.run.context import open_context
    from qconvert.run.quantize import inspect_layers

    result = inspect_layers(open_context(config, trust=chosen["trust"]), chosen["backend"])
    layers, sums = result.layers, result.sums
    saturating = {layer.node: layer for layer in sums or () if layer.saturating_channels}
    if chosen["as_json"]:
        rows = {name: asdict(layer) for name, layer in layers.items()}
        proof = {"portable": not saturating, "pair_sums": [asdict(layer) for layer in sums or ()]}
        notes = {"notes": list(result.notes)} if result.notes else {}
        proof = proof if sums is not None else {}
        console.write_json({"model": model, "layers": rows, **proof, **notes})
        return
    if chosen["nodes"]:
        columns = make_columns("l l l w", "node", "operator", "int8", "why")
        cells = [
            [name, layer.op, "" if layer.left else "yes", layer.left or layer.note]
            for name, layer in layers.items()
        ]
        console.write_table(TextTable(columns, cells))
    else:
        console.show_coverage(layers)
    console.write(*(["", *result.notes] if result.notes else []))
    if sums is not None:
        console.write("", describe_saturation(sums))
        worst = sorted(saturating.values(), key=lambda layer: -layer.largest)[:MAX_SATURATING]
        for layer in worst:
            counts = f"{layer.saturating_channels} of {layer.channels} channels"
            console.write(f"  {layer.node}: {counts}, sums up to {layer.largest:,} of 32,767")


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
        titles = ("node", "operator", "output", "parameters", "MACs")
        columns = make_columns("l l l2 r3 r1", *titles)
        for node in summary.nodes:
            shape = node.outputs[0].partition(": ")[2] if node.outputs else ""
            counts = map(_count, (node.parameters, node.macs))
            rows.append([node.name or "-", node.op, shape, *counts])
    else:
        total = sum(operator.macs or 0 for operator in summary.operators)
        titles = ("operator", "nodes", "parameters", "MACs", "share")
        columns = make_columns("l r r r r1", *titles)
        for operator in summary.operators:
            share = f"{100 * operator.macs / total:.1f} %" if operator.macs else ""
            counts = map(_count, (operator.parameters, operator.macs))
            rows.append([operator.op, str(operator.nodes), *counts, share])
    console.write_table(TextTable(columns, rows))
    if summary.quantized:
        console.write("\nalready quantized: `build` and `quantize` read its Q/DQ nodes as a plan")


def _count(number: int | None) -> str:
    """Write a count with three digits and a unit; nothing for zero, which only fills a table."""
    if not number:
        return "unknown" if number is None else ""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            digits = ".3g" if number < 1000 * size else ".0f"
            return f"{number / size:{digits}}{unit}"
    return str(number)


@options.command("qconvert init resnet50.onnx", "qconvert init mypkg.nets:build -o settings.toml")
@click.argument("model", required=False)
@options.output("File to write (default: ./qconvert.toml).", default="qconvert.toml")
@options.flag("--force", "Overwrite an existing file.")
def init_command(model: str | None, output: Path, force: bool) -> None:
    """Write a settings file for MODEL with every setting, its default and its meaning."""
    from qconvert import sources
    from qconvert.core import config_file

    if model is not None and output.resolve() == Path(model).resolve():
        raise UsageError(f"`{output}` is the model itself", hint="choose another name: `-o`")
    if output.exists() and not force:
        raise UsageError(f"`{output}` exists", hint="overwrite it with `--force`, or use `-o`")
    if model is not None and sources.kind(model) in sources.FILE_KINDS:
        if not Path(model).is_file():
            raise UsageError(
                f"`{model}` does not exist", hint="name an existing model, or leave it out"
            )
        # Paths in a settings file are relative to the file.
        model = Path(os.path.relpath(model, output.parent)).as_posix()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(config_file.commented_toml(model).encode())
    is_default = output.resolve() == Path(config_file.FILE_NAME).resolve()
    usage = "commands in this folder read it" if is_default else f"`--config {output}` reads it"
    console.info(f"wrote {output}; {usage}")
