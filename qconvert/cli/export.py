"""`qconvert export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings, views


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
def command(source: str | None, output: Path | None, **chosen: Any) -> None:
    """Convert SOURCE to one clean ONNX file and check that its outputs are the same.

    SOURCE is m.onnx, net.pt2, package.module:factory, timm:NAME or torchvision:NAME. Named models
    use their pretrained weights unless --weights is given. With --images, PyTorch and ONNX are
    compared on some of them instead of on random inputs, and the preprocessing is written into the
    file.
    """
    from qconvert import sources
    from qconvert.core import config_file, onnx_io
    from qconvert.core.errors import UsageError
    from qconvert.graph.clean import list_passes, require_known_passes
    from qconvert.run.context import open_context
    from qconvert.run.export import export

    config = settings.load(source, chosen)
    path = settings.output_path(output, str(config.model), ".onnx")
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
    result = export(open_context(config, console.PROGRESS.update, trust=chosen["trust"]), path)
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
            **views.model_file_json(result.path),
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
