"""`qconvert package`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options

# Listed here too, so that `--help` does not import the writers; a test compares.
FORMATS = ("onnxruntime", "triton")


@options.command(
    "qconvert package runs/model --format onnxruntime -o model-int8/",
    "qconvert package runs/model --format triton --engine cpu-int8 -o models/",
)
@click.argument("run", type=options.PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    required=True,
    help="Runtime that will load the engine.",
)
@options.output("The folder to write.", required=True)
@click.option(
    "--engine", default="", metavar="NAME", help="Engine to package (default: the verdict's)."
)
@click.option("--name", default="", help="Name of the model (default: as in the run).")
@click.option("--classes", type=options.PATH, help="Class names, one per line.")
@options.json_option
def command(run: Path, form: Any, output: Path, as_json: bool, **chosen: Any) -> None:
    """Package an engine of RUN for other programs.

    For `onnxruntime`: a folder with the engine, its preprocessing and a short script that runs it
    on images without qconvert. For `triton`: a folder in the model repository OUTPUT, with
    inputs, outputs and batching configured.
    """
    from qconvert.package.pack import write_package
    from qconvert.run.targets import load_run

    package = write_package(load_run(run), form, output, **chosen)
    console.note(*package.notes)
    if as_json:
        console.write_json({**asdict(package), "folder": str(package.folder)})
        return
    console.write(*(str(package.folder / file) for file in package.files))
    readme = package.folder / "README.md"
    console.info(f"packaged `{package.engine}`; {readme} says how to start it")
