"""From a command line to settings: the settings file, `--set`, and the options for settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.cli import console

if TYPE_CHECKING:
    from qconvert.core.config import Config


def load(model: str | None, options: Mapping[str, Any]) -> "Config":
    """Return the settings of a command: those of the settings file, overridden by options."""
    from qconvert.core import config_file

    path = config_file.find(options.get("config"))
    if path and not options.get("config"):
        console.info(f"settings from ./{path}")
    return _require_model(_load(path, model, options))


def load_for_run(run: Path, model: str | None, options: Mapping[str, Any]) -> "Config":
    """Return the settings of a run that is resumed: its own, overridden by `--config` and options.

    The file in the working folder is for new runs.
    """
    from qconvert.run.run_folder import RunFolder

    return _require_model(_load(options.get("config"), model, options, RunFolder(run).settings()))


def load_for_target(run: Path | None, options: Mapping[str, Any]) -> "Config":
    """Return the settings for finished engines: those of their run, overridden as in a new run.

    The file in the working folder is for engines without a run.
    """
    from qconvert.core import config_file
    from qconvert.run.run_folder import RunFolder

    if run is None:
        return _load(config_file.find(options.get("config")), None, options)
    return _load(options.get("config"), None, options, RunFolder(run).settings())


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

    It is never the model itself.
    """
    from qconvert.core.errors import UsageError

    if chosen is not None:
        if chosen.resolve() == Path(model).resolve():
            raise UsageError(f"`{chosen}` is the source itself", hint="choose another name: `-o`")
        return chosen
    default = Path(f"{_model_name(model)}{suffix}")
    if default.resolve() == Path(model).resolve():
        return Path(f"{_model_name(model)}-clean{suffix}")
    return default


def default_run_folder(chosen: Path | None, model: str) -> Path:
    """Return the folder of a run: as chosen, else `runs/NAME`."""
    return chosen or Path("runs") / _model_name(model)


def _load(
    path: Path | None,
    model: str | None,
    options: Mapping[str, Any],
    base: "Config | None" = None,
) -> "Config":
    from qconvert.core import config_file

    assigned = config_file.parse_assignments(options.get("assigned", ()))
    return config_file.load(path, {**assigned, **from_options(model, options)}, base=base)


def _require_model(config: "Config") -> "Config":
    from qconvert.core.errors import UsageError

    if config.model is None:
        raise UsageError(
            "no model is named", hint="name one, or set `model = ...` in qconvert.toml"
        )
    return config


def _model_name(model: str) -> str:
    from qconvert import sources

    is_file = sources.kind(model) in sources.FILE_KINDS
    return Path(model).stem if is_file else model.rpartition(":")[2]
