"""`qconvert init`."""

from pathlib import Path

import click

from qconvert.cli import console, options

EXAMPLES = """\b
Examples:
  qconvert init resnet50.onnx
  qconvert init mypkg.nets:build -o settings.toml"""


@click.command(epilog=EXAMPLES)
@click.argument("model", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("qconvert.toml"),
    help="Where to write (default: ./qconvert.toml).",
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@options.verbosity_options
def command(model: str | None, output: Path, force: bool) -> None:
    """Write a settings file for MODEL: every setting, its default, and what it means."""
    from qconvert import sources
    from qconvert.core import config_file
    from qconvert.core.errors import UsageError

    if model is not None and output.resolve() == Path(model).resolve():
        raise UsageError(f"`{output}` is the model itself", hint="choose another name: `-o`")
    if output.exists() and not force:
        raise UsageError(f"`{output}` exists", hint="write over it with `--force`, or use `-o`")
    if (
        model is not None
        and sources.kind(model) in sources.FILE_KINDS
        and not Path(model).is_file()
    ):
        raise UsageError(f"`{model}` does not exist", hint="name a model that is there, or none")
    relative = _relative_model(output, model)
    text = config_file.commented_toml(relative).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(text)
    usual = output.resolve() == Path(config_file.FILE_NAME).resolve()
    how = "commands in this folder read it" if usual else f"`--config {output}` reads it"
    console.info(f"wrote {output}; {how}")


def _relative_model(output: Path, model: str | None) -> str | None:
    """Return the model's path relative to the settings file, as the file will be read."""
    import os

    if model is None or ":" in model:
        return model
    return Path(os.path.relpath(model, output.parent)).as_posix()
