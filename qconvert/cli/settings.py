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
    from qconvert.errors import UsageError

    file = config_file.find(chosen.get("config"))
    if file and not chosen.get("config"):
        console.say(f"settings from ./{file}")
    assigned = config_file.assignments(chosen.get("assigned", ()))
    loaded = config_file.load(file, {**assigned, **typed(model, chosen)})
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


def file_of_run(run: Path) -> Path:
    """Return the settings file of a run, or refuse what is none."""
    from qconvert.errors import UsageError

    file = run / "run.toml"
    if not file.is_file():
        raise UsageError(
            f"`{run}` is not the folder of a run: it has no run.toml",
            hint="name the folder that `qconvert build -o RUN` wrote",
        )
    return file


def of_target(run: Path | None, chosen: Mapping[str, Any]) -> "Config":
    """Return the settings for engines that are there: of their run or the file, and what was typed.

    A run goes on with its own; the file in the working folder is for engines without one.
    """
    from qconvert import config_file

    file = chosen.get("config") or (config_file.find(None) if run is None else run / "run.toml")
    assigned = config_file.assignments(chosen.get("assigned", ()))
    return config_file.load(file, {**assigned, **typed(None, chosen)})


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
