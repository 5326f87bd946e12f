"""`qconvert export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options

if TYPE_CHECKING:
    from qconvert.config import Config
    from qconvert.pipeline import Exported, Progress

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
@click.option("--dry-run", is_flag=True, help="Print what would be done and touch nothing.")
@options.settings
@options.as_json
@options.talk
def command(source: str | None, output: Path | None, **chosen: Any) -> None:
    """Turn SOURCE into one clean ONNX file and check that it says the same.

    SOURCE is m.onnx, net.pt2, package.module:factory, timm:NAME or torchvision:NAME. Named nets
    come with their own pretrained weights unless --weights says otherwise.
    """
    from qconvert import pipeline, store

    config = _config(source, chosen)
    place = output or _default_place(str(config.model))
    _spare_source(str(config.model), place)
    if chosen["dry_run"]:
        _plan(config, place)
        return
    with console.Steps() as steps:

        def tell(progress: "Progress") -> None:
            steps.tell(progress.step, progress.text, progress.seconds, stored=progress.stored)

        done = pipeline.export(config, place, store.default(), tell, trust=chosen["trust"])
    for step in done.steps:
        if step.dropped:
            console.say(f"    note: {step.name} left out: {step.dropped}")
        console.say(f"    {step.name}: {step.changed or 'nothing'}, {step.seconds:.2f} s", level=1)
    if done.quantized:
        console.say("    note: this model holds Q/DQ nodes; they are kept as they are")
    if chosen["as_json"]:
        console.data_json(_as_json(done))


def _config(source: str | None, chosen: dict[str, Any]) -> "Config":
    from qconvert import config
    from qconvert.errors import UsageError

    file = config.find(chosen["config"])
    if file and not chosen["config"]:
        console.say(f"settings from ./{file}")
    batch = chosen["batch"]
    given = options.given(
        model=source,
        export__inputs=chosen["inputs"],
        export__weights=chosen["weights"],
        export__batch=int(batch) if batch and batch.isdigit() else batch,
        export__opset=chosen["opset"],
        export__parity_tolerance=chosen["parity_tolerance"],
        prepare__skip=chosen["skip"],
    )
    loaded = config.load(file, {**config.assignments(chosen["assigned"]), **given})
    if loaded.model is None:
        raise UsageError("there is no model to export", hint="name one: `qconvert export SOURCE`")
    return loaded


def _default_place(source: str) -> Path:
    """Name the file after the source, in the current folder, and never over the source itself."""
    from qconvert import sources

    kind = sources.kind(source)
    name = Path(source).stem if kind.endswith("file") else source.rpartition(":")[2]
    place = Path(f"{name}.onnx")
    return Path(f"{name}-clean.onnx") if place.resolve() == Path(source).resolve() else place


def _spare_source(source: str, place: Path) -> None:
    from qconvert.errors import UsageError

    if place.resolve() == Path(source).resolve():
        raise UsageError(f"`{place}` is the source itself", hint="choose another name with `-o`")


def _plan(config: "Config", place: Path) -> None:
    from qconvert import sources
    from qconvert.graph.prepare import passes

    left = [
        each.name for each in passes(config.export.opset) if each.name not in config.prepare.skip
    ]
    kind = sources.kind(str(config.model))
    console.data(f"load     {config.model} ({kind})")
    console.data(f"prepare  {', '.join(left)}")
    if kind != "ONNX file":
        console.data(f"parity   on {config.export.parity_inputs} inputs against PyTorch")
    console.data(f"write    {place}")


def _as_json(done: "Exported") -> dict[str, object]:
    from dataclasses import asdict

    from qconvert import onnx_io
    from qconvert.store import digest

    return {
        "model": str(done.path),
        "files": [str(file) for file in onnx_io.files(done.path)],
        "bytes": sum(file.stat().st_size for file in onnx_io.files(done.path)),
        "sha256": digest(done.path),
        "opset": done.model.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in onnx_io.inputs(done.model)],
        "outputs": [str(spec) for spec in onnx_io.outputs(done.model)],
        "quantized": done.quantized,
        "parity": asdict(done.parity) if done.parity else None,
        "steps": [asdict(step) for step in done.steps],
        "notes": list(done.source.notes),
    }
