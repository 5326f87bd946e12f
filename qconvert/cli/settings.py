"""From what was typed to settings: the file, `--set`, and the options that stand for a setting."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.cli import console

if TYPE_CHECKING:
    from qconvert.config import Config

# Option to setting, or settings with commas; an option that is not here decides how a job runs, not
# what it makes.
SETTINGS = {
    "inputs": "export.inputs",
    "weights": "export.weights",
    "batch": "export.batch",
    "opset": "export.opset",
    "parity_tolerance": "export.parity-tolerance",
    "skip": "prepare.skip",
    "preprocess": "preprocess.preset",
    "resize": "preprocess.resize",
    "crop": "preprocess.crop",
    "interpolation": "preprocess.interpolation",
    "mean": "preprocess.mean",
    "std": "preprocess.std",
    "images": "calibration.images",
    "count": "calibration.count",
    "max_broken": "calibration.max-broken",
    "exact": "calibration.exact",
    "method": "quantize.method",
    "effort": "quantize.effort",
    "weight_bits": "quantize.weight-bits",
    "exclude": "quantize.exclude",
    "only": "quantize.only",
    "keep": "quantize.keep",
    "rest": "quantize.rest",
    "backends": "build.backends",
    "precisions": "build.precisions",
    "profile": "build.profile",
    "allow_fallback": "cuda.allow-fallback,tensorrt.allow-fallback",
    "budget": "search.budget",
    "by": "search.by",
    "latency_limit": "search.max-latency",
    "batch_sizes": "bench.batch-sizes",
    "seconds": "bench.seconds",
    "eval_images": "evaluate.images",
    "labels": "evaluate.labels",
    "eval_count": "evaluate.count",
    "max_drop": "gate.max-drop",
    "min_agreement": "gate.min-agreement",
    "max_latency": "gate.max-latency",
    "min_speedup": "gate.min-speedup",
    "max_size": "gate.max-size",
    "allow_unmeasured": "gate.allow-unmeasured",
}


def read(model: str | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings of a command; what was typed wins over the file."""
    from qconvert import config_file

    file = config_file.find(chosen.get("config"))
    if file and not chosen.get("config"):
        console.say(f"settings from ./{file}")
    return _with_model(_laid(file, model, chosen))


def of_run(run: Path, model: str | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings of a run that goes on: its own, below the file named and what was typed.

    The file in the working folder is for runs that begin.
    """
    from qconvert.pipeline.run_folder import RunFolder

    own = RunFolder(run).settings()
    return _with_model(_laid(chosen.get("config"), model, chosen, own))


def _laid(
    file: Path | None, model: str | None, chosen: Mapping[str, Any], below: "Config | None" = None
) -> "Config":
    from qconvert import config_file

    assigned = config_file.assignments(chosen.get("assigned", ()))
    return config_file.load(file, {**assigned, **typed(model, chosen)}, below=below)


def _with_model(loaded: "Config") -> "Config":
    from qconvert.errors import UsageError

    if loaded.model is None:
        raise UsageError("there is no model", hint="name one, or `model = ...` in qconvert.toml")
    return loaded


def typed(model: str | None, chosen: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that the options of a command stand for."""
    found = {
        key: chosen[name]
        for name, keys in SETTINGS.items()
        if _was_given(chosen.get(name))
        for key in keys.split(",")
    }
    return found if model is None else {"model": model, **found}


def place(chosen: Path | None, model: str, suffix: str) -> Path:
    """Return where a result goes: as chosen, else named after the model, in this folder.

    Never over the model itself.
    """
    from qconvert import sources
    from qconvert.errors import UsageError

    if chosen is not None:
        if chosen.resolve() == Path(model).resolve():
            raise UsageError(f"`{chosen}` is the source itself", hint="choose another name: `-o`")
        return chosen
    kind = sources.kind(model)
    name = Path(model).stem if kind in sources.FILES else model.rpartition(":")[2]
    default = Path(f"{name}{suffix}")
    same = default.resolve() == Path(model).resolve()
    return Path(f"{name}-clean{suffix}") if same else default


def of_target(run: Path | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings for engines that are there: those of their run, below what is given.

    The file in the working folder is for engines without a run.
    """
    from qconvert import config_file
    from qconvert.pipeline.run_folder import RunFolder

    if run is None:
        return _laid(config_file.find(chosen.get("config")), None, chosen)
    return _laid(chosen.get("config"), None, chosen, RunFolder(run).settings())


def run_place(chosen: Path | None, model: str) -> Path:
    """Return the folder of a run: as chosen, else `runs/NAME`."""
    from qconvert import sources

    if chosen is not None:
        return chosen
    kind = sources.kind(model)
    name = Path(model).stem if kind in sources.FILES else model.rpartition(":")[2]
    return Path("runs") / name


def _was_given(value: object) -> bool:
    return value is not None and value is not False and value != ()
