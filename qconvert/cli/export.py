"""`qconvert export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.image_options import image_options
from qconvert.cli.steps import Steps

if TYPE_CHECKING:
    from qconvert.config import Config
    from qconvert.pipeline.export import Exported

EXAMPLES = """\b
Examples:
  qconvert export resnet50.onnx -o clean.onnx
  qconvert export mypkg.nets:build --input image:1x3x224x224 --weights net.pt"""


@click.command(epilog=EXAMPLES)
@click.argument("source", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The ONNX file (default: NAME.onnx)."
)
@options.source
@click.option("--opset", type=int, help="Lowest ONNX opset of the result (default: 20).")
@click.option(
    "--parity-tolerance", type=float, help="Largest relative difference (default: 0.001)."
)
@click.option(
    "--skip", multiple=True, metavar="PASS", help="Leave out a cleaning pass; repeatable."
)
@image_options
@click.option("--dry-run", is_flag=True, help="Print what would be done and touch nothing.")
@options.settings
@options.as_json
@options.talk
def command(source: str | None, output: Path | None, **chosen: Any) -> None:
    """Turn SOURCE into one clean ONNX file and check that it says the same.

    SOURCE is m.onnx, net.pt2, package.module:factory, timm:NAME or torchvision:NAME. Named nets
    come with their own pretrained weights unless --weights says otherwise. With --images, PyTorch
    and ONNX are compared on some of them instead of on random inputs, and what is done to a picture
    is written into the file.
    """
    config = settings.read(source, chosen)
    place = settings.place(output, str(config.model), ".onnx")
    if chosen["dry_run"]:
        _plan(config, place)
        return
    from qconvert import store
    from qconvert.pipeline.export import export

    with Steps() as steps:
        done = export(config, place, store.default(), steps.tell, trust=chosen["trust"])
    for step in done.prepared.steps:
        if step.dropped:
            console.note(f"{step.name} left out: {step.dropped}")
        console.say(f"    {step.name}: {step.changed or 'nothing'}, {step.seconds:.2f} s", level=1)
    if done.quantized:
        console.note("this model holds Q/DQ nodes; they are kept as they are")
    if chosen["as_json"]:
        console.data_json(_as_json(done))


def _plan(config: "Config", place: Path) -> None:
    from qconvert import sources
    from qconvert.errors import UsageError
    from qconvert.graph.prepare import passes, require_known

    left = [
        each.name for each in passes(config.export.opset) if each.name not in config.prepare.skip
    ]
    require_known(config.prepare.skip)
    kind = sources.kind(str(config.model))
    if kind in sources.FILES and not Path(str(config.model)).is_file():
        raise UsageError(f"`{config.model}` does not exist", hint="check the path")
    console.data(f"load     {config.model} ({kind})")
    console.data(f"prepare  {', '.join(left)}")
    if kind != "ONNX file":
        console.data(f"parity   on {config.export.parity_inputs} inputs against PyTorch")
    console.data(f"write    {place}")


def _as_json(done: "Exported") -> dict[str, object]:
    from dataclasses import asdict

    from qconvert import config_file, onnx_io
    from qconvert.store import digest

    return {
        "model": str(done.path),
        "files": [str(file) for file in onnx_io.files(done.path)],
        "bytes": sum(file.stat().st_size for file in onnx_io.files(done.path)),
        "sha256": digest(done.path),
        "opset": done.prepared.model.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in onnx_io.inputs(done.prepared.model)],
        "outputs": [str(spec) for spec in onnx_io.outputs(done.prepared.model)],
        "quantized": done.quantized,
        "parity": asdict(done.parity) if done.parity else None,
        "steps": [asdict(step) for step in done.prepared.steps],
        "config": config_file.plain(done.config),
        "notes": list(done.prepared.source.notes),
    }
