"""`qconvert init`."""

import os
from pathlib import Path

import click

from qconvert.cli import console, options
from qconvert.core.errors import UsageError


@options.command("qconvert init resnet50.onnx", "qconvert init mypkg.nets:build -o settings.toml")
@click.argument("model", required=False)
@options.output("File to write (default: ./qconvert.toml).", default="qconvert.toml")
@options.flag("--force", "Overwrite an existing file.")
def command(model: str | None, output: Path, force: bool) -> None:
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
