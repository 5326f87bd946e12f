"""`qconvert export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import image_options
from qconvert.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from qconvert.core.config import Config
    from qconvert.run.export import Exported

EXAMPLES = """\b
Examples:
  qconvert export resnet50.onnx -o clean.onnx
  qconvert export mypkg.nets:build --input image:1x3x224x224 --weights net.pt"""


@click.command(epilog=EXAMPLES)
@click.argument("source", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The ONNX file (default: NAME.onnx)."
)
@options.source_options
@options.setting_options("export.opset", "export.parity-tolerance", "prepare.skip")
@image_options
@click.option("--dry-run", is_flag=True, help="Print what would be done and touch nothing.")
@options.settings_options
@options.json_option
@options.verbosity_options
def command(source: str | None, output: Path | None, **chosen: Any) -> None:
    """Turn SOURCE into one clean ONNX file and check that it says the same.

    SOURCE is m.onnx, net.pt2, package.module:factory, timm:NAME or torchvision:NAME. Named nets
    come with their own pretrained weights unless --weights says otherwise. With --images, PyTorch
    and ONNX are compared on some of them instead of on random inputs, and what is done to a picture
    is written into the file.
    """
    config = settings.load(source, chosen)
    place = settings.output_path(output, str(config.model), ".onnx")
    if chosen["dry_run"]:
        _print_dry_run(config, place)
        return
    from qconvert.core import cache
    from qconvert.run.export import export

    with ProgressDisplay() as steps:
        done = export(config, place, cache.open_default(), steps.update, trust=chosen["trust"])
    for step in done.loaded.steps:
        if step.dropped:
            console.note(f"{step.name} left out: {step.dropped}")
        console.info(f"    {step.name}: {step.changed or 'nothing'}, {step.seconds:.2f} s", level=1)
    if done.quantized:
        console.note("this model holds Q/DQ nodes; they are kept as they are")
    if chosen["as_json"]:
        console.write_json(_as_json(done))


def _print_dry_run(config: "Config", place: Path) -> None:
    from qconvert import sources
    from qconvert.core.errors import UsageError
    from qconvert.graph.clean import list_passes, require_known_passes

    left = [
        each.name
        for each in list_passes(config.export.opset)
        if each.name not in config.prepare.skip
    ]
    require_known_passes(config.prepare.skip)
    kind = sources.kind(str(config.model))
    if kind in sources.FILE_KINDS and not Path(str(config.model)).is_file():
        raise UsageError(f"`{config.model}` does not exist", hint="check the path")
    console.write(f"load     {config.model} ({kind})")
    console.write(f"prepare  {', '.join(left)}")
    if kind != "ONNX file":
        console.write(f"parity   on {config.export.parity_inputs} inputs against PyTorch")
    console.write(f"write    {place}")


def _as_json(done: "Exported") -> dict[str, object]:
    from dataclasses import asdict

    from qconvert.core import config_file, onnx_io
    from qconvert.core.cache import file_sha256

    return {
        "model": str(done.path),
        "files": [str(file) for file in onnx_io.model_files(done.path)],
        "bytes": sum(file.stat().st_size for file in onnx_io.model_files(done.path)),
        "sha256": file_sha256(done.path),
        "opset": done.loaded.model.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in onnx_io.inputs(done.loaded.model)],
        "outputs": [str(spec) for spec in onnx_io.outputs(done.loaded.model)],
        "quantized": done.quantized,
        "parity": asdict(done.parity) if done.parity else None,
        "steps": [asdict(step) for step in done.loaded.steps],
        "config": config_file.as_dict(done.config),
        "notes": list(done.loaded.source.notes),
    }
