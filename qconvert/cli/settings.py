"""Settings of a command: from the settings file, `--set`, and options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.cli import console
from qconvert.core.config import Config
from qconvert.core.errors import UsageError


def load(model: str | None, options: Mapping[str, Any], run: Path | None = None) -> Config:
    """Return the settings of a command for a model, or for a run that is resumed."""
    from qconvert.core import config_file

    path = config_file.find(options.get("config"))
    if run is None and path and not options.get("config"):
        console.info(f"settings from ./{path}")
    config = load_for_target(run, options, model)
    if config.model is None:
        raise UsageError(
            "no model is named", hint="name one, or set `model = ...` in qconvert.toml"
        )
    return config


def load_for_target(
    run: Path | None, options: Mapping[str, Any], model: str | None = None
) -> Config:
    """Return the settings of a run or of the settings file, overridden by options.

    The file in the working folder is for new runs, and for engines without a run.
    """
    from qconvert.core import config_file
    from qconvert.run.run_folder import RunFolder

    path, base = options.get("config"), None
    if run is None:
        path = config_file.find(path)
    else:
        base = RunFolder(run).settings()
    assigned = config_file.parse_assignments(options.get("assigned", ()))
    return config_file.load(path, {**assigned, **from_options(model, options)}, base=base)


def from_options(model: str | None, options: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that options set, by dotted key; their parameters are named after it."""
    overrides: dict[str, object] = {} if model is None else {"model": model}
    for name, value in options.items():
        is_set = value is not None and value is not False and value != ()
        if "." in name and is_set:
            overrides |= dict.fromkeys(name.split(","), value)
    return overrides


def output_path(chosen: Path | None, model: str, suffix: str) -> Path:
    """Return the file to write: as chosen, else named after the model, in the working folder.

    It must not be the model itself.
    """
    if chosen is not None:
        if chosen.resolve() == Path(model).resolve():
            raise UsageError(f"`{chosen}` is the source itself", hint="choose another name: `-o`")
        return chosen
    name = _model_name(model)
    is_source = Path(f"{name}{suffix}").resolve() == Path(model).resolve()
    return Path(f"{name}-clean{suffix}" if is_source else f"{name}{suffix}")


def default_run_folder(chosen: Path | None, model: str) -> Path:
    """Return the folder of a run: as chosen, else `runs/NAME`."""
    return chosen or Path("runs") / _model_name(model)


def _model_name(model: str) -> str:
    from qconvert import sources

    is_file = sources.kind(model) in sources.FILE_KINDS
    return Path(model).stem if is_file else model.rpartition(":")[2]
