"""Settings of a command: from the settings file, `--set`, and options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.cli import console
from qconvert.core.config import Config
from qconvert.core.errors import UsageError


def load(
    model: str | None, options: Mapping[str, Any], run: Path | None = None, *, engines: bool = False
) -> Config:
    """Return the settings of a run or of the settings file, overridden by options.

    The file in the working folder is for new runs, and for `engines` without a run; these need no
    model.
    """
    from qconvert.core import config_file
    from qconvert.run.run_folder import RunFolder

    path = options.get("config")
    if path is None and run is None and Path(config_file.FILE_NAME).is_file():
        path = Path(config_file.FILE_NAME)
        if not engines:
            console.info(f"settings from ./{path}")
    base = RunFolder(run).settings() if run is not None else None
    assigned = config_file.parse_assignments(options.get("assigned", ()))
    config = config_file.load(path, {**assigned, **from_options(model, options)}, base=base)
    if config.model is None and not engines:
        raise UsageError(
            "no model is named", hint="name one, or set `model = ...` in qconvert.toml"
        )
    return config


def from_options(model: str | None, options: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that options set, by dotted key; their parameters are named after it."""
    overrides: dict[str, object] = {} if model is None else {"model": model}
    for keys, value in options.items():
        if "." in keys and value is not None and value is not False and value != ():
            overrides |= dict.fromkeys(keys.split(","), value)
    return overrides


def output_path(chosen: Path | None, model: str, suffix: str) -> Path:
    """Return the file to write: as chosen, else named after the model, in the working folder.

    It must not be the model itself.
    """
    path = chosen or Path(f"{model_name(model)}{suffix}")
    if path.resolve() != Path(model).resolve():
        return path
    if chosen is not None:
        raise UsageError(f"`{chosen}` is the source itself", hint="choose another name: `-o`")
    return Path(f"{model_name(model)}-clean{suffix}")


def model_name(model: str) -> str:
    """Return the name in `net.onnx`, `timm:net` and `package.module:net`."""
    from qconvert import sources

    is_file = sources.kind(model) in sources.FILE_KINDS
    return Path(model).stem if is_file else model.rpartition(":")[2]
