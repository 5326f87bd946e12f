"""From what was typed to settings: the file, `--set`, and the options that stand for a setting."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.cli import console
from qconvert.core.option_table import OPTION_SETTINGS

if TYPE_CHECKING:
    from qconvert.core.config import Config


def load(model: str | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings of a command; what was typed wins over the file."""
    from qconvert.core import config_file

    file = config_file.find(chosen.get("config"))
    if file and not chosen.get("config"):
        console.info(f"settings from ./{file}")
    return _require_model(_load_layers(file, model, chosen))


def load_for_run(run: Path, model: str | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings of a run that goes on: its own, below the file named and what was typed.

    The file in the working folder is for runs that begin.
    """
    from qconvert.run.run_folder import RunFolder

    own = RunFolder(run).settings()
    return _require_model(_load_layers(chosen.get("config"), model, chosen, own))


def _load_layers(
    file: Path | None, model: str | None, chosen: Mapping[str, Any], below: "Config | None" = None
) -> "Config":
    from qconvert.core import config_file

    assigned = config_file.parse_assignments(chosen.get("assigned", ()))
    return config_file.load(file, {**assigned, **from_options(model, chosen)}, base=below)


def _require_model(loaded: "Config") -> "Config":
    from qconvert.core.errors import UsageError

    if loaded.model is None:
        raise UsageError("there is no model", hint="name one, or `model = ...` in qconvert.toml")
    return loaded


def from_options(model: str | None, chosen: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that the options of a command stand for."""
    found = {
        key: chosen[name]
        for name, keys in OPTION_SETTINGS.items()
        if _is_set(chosen.get(name))
        for key in keys.split(",")
    }
    return found if model is None else {"model": model, **found}


def output_path(chosen: Path | None, model: str, suffix: str) -> Path:
    """Return where a result goes: as chosen, else named after the model, in this folder.

    Never over the model itself.
    """
    from qconvert import sources
    from qconvert.core.errors import UsageError

    if chosen is not None:
        if chosen.resolve() == Path(model).resolve():
            raise UsageError(f"`{chosen}` is the source itself", hint="choose another name: `-o`")
        return chosen
    kind = sources.kind(model)
    name = Path(model).stem if kind in sources.FILE_KINDS else model.rpartition(":")[2]
    default = Path(f"{name}{suffix}")
    same = default.resolve() == Path(model).resolve()
    return Path(f"{name}-clean{suffix}") if same else default


def load_for_target(run: Path | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings for engines that are there: those of their run, below what is given.

    The file in the working folder is for engines without a run.
    """
    from qconvert.core import config_file
    from qconvert.run.run_folder import RunFolder

    if run is None:
        return _load_layers(config_file.find(chosen.get("config")), None, chosen)
    return _load_layers(chosen.get("config"), None, chosen, RunFolder(run).settings())


def default_run_folder(chosen: Path | None, model: str) -> Path:
    """Return the folder of a run: as chosen, else `runs/NAME`."""
    from qconvert import sources

    if chosen is not None:
        return chosen
    kind = sources.kind(model)
    name = Path(model).stem if kind in sources.FILE_KINDS else model.rpartition(":")[2]
    return Path("runs") / name


def _is_set(value: object) -> bool:
    return value is not None and value is not False and value != ()
