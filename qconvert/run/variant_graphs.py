"""The ONNX graph of every variant, kept in the store with its plan and what was found out."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from qconvert import __version__, backends
from qconvert.backends.base import FLOAT, EngineVariant
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import config_file, onnx_io
from qconvert.core.cache import Cache
from qconvert.core.config import Config
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.quantize import plan_files
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.run import validate
from qconvert.run.quantize_model import QuantizeSpec, convert_precision
from qconvert.run.run_folder import GRAPH_FILE, GRAPH_RECORD, PLAN_FILE
from qconvert.run.variants import BuildInputs

LIBRARIES = ("onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class VariantGraph:
    """The folder of a graph, and how the graph came to be."""

    folder: Path
    plan: Plan | None
    islands: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH_FILE


def make_graph(
    variant: EngineVariant, basis: BuildInputs, store: Cache, tell: ProgressCallback
) -> VariantGraph:
    """Return the graph of a variant, from the store where it was made before."""
    started = time.perf_counter()
    how = _quantize_spec(variant, basis)

    ended: list[Progress] = []

    def heard(progress: Progress) -> None:
        """Tell what is at work; what is done is told once it is kept."""
        if progress.seconds is None:
            tell(progress)
        else:
            ended.append(progress)

    def make(folder: Path) -> None:
        done = convert_precision(basis.loaded, basis.calibration, how, store, heard)
        onnx_io.save(done.model, folder / GRAPH_FILE)
        if done.plan is not None:
            plan_files.save_plan(
                PlanWithWeights(done.plan, done.rounded_weights), folder / PLAN_FILE
            )
        told = {
            "islands": done.islands,
            "notes": done.notes,
            "tried": [asdict(each) for each in done.method_scores],
        }
        (folder / GRAPH_RECORD).write_text(json.dumps(told, indent=1), encoding="utf-8")

    found = store.get_or_make("rewrite", _cache_key(how, basis), make)
    if found.hit:
        ended = [Progress("quantize", how.name, time.perf_counter() - started, stored=True)]
    for each in ended:
        tell(each)
    return read_graph(found.path)


def read_graph(folder: Path) -> VariantGraph:
    """Return the graph that lies in a folder."""
    plan = plan_files.read_plan(folder / PLAN_FILE) if (folder / PLAN_FILE).is_file() else None
    told = json.loads((folder / GRAPH_RECORD).read_text(encoding="utf-8"))
    return VariantGraph(folder, plan, told["islands"], tuple(told["notes"]))


def _quantize_spec(variant: EngineVariant, basis: BuildInputs) -> QuantizeSpec:
    wants = backends.requirements(variant.backend)
    wishes = validate.quantize_options(basis.config)
    table = engine_settings(basis.config, variant.backend)
    typed = wants.strongly_typed or table.get("builder") == "native"
    alone = FLOAT.get(variant.precision)
    if alone is not None:
        return QuantizeSpec(variant.name, replace(wishes, rest=alone if typed else "fp32"))
    rest = (basis.config.quantize.rest or wants.default_rest) if typed else "fp32"
    wishes = replace(wishes, rest=rest)
    planned = basis.plans.get(variant.name)
    if planned is not None:
        plan = replace(planned.plan, rest=rest)
        return QuantizeSpec(variant.name, wishes, plan=plan, rounded_weights=planned.weights)
    scheme = validate.scheme_for(basis.config, wants)
    return QuantizeSpec(variant.name, wishes, scheme, effort=basis.config.quantize.effort)


def engine_settings(config: Config, backend: str) -> dict[str, str | int | bool]:
    """Return the settings that belong to a backend, by the names that it knows."""
    table = asdict(getattr(config, backend.replace("-", "_")))
    return {name.replace("_", "-"): value for name, value in table.items()}


def _cache_key(how: QuantizeSpec, basis: BuildInputs) -> dict[str, str]:
    """Return all that decides the graph."""
    found = basis.calibration
    seen = found.full.origin.fingerprint if found is not None else ""
    # A run that goes on knows less than a new one: it has one calibration, and makes no other.
    known = found and (
        found.excludes_holdout,
        found.images_available,
        found.has_holdout,
        found.recalibrate is not None,
    )
    chosen = config_file.as_dict(basis.config)["quantize"]
    return {
        "model": onnx_io.fingerprint(basis.loaded.model),
        "name": f"{basis.loaded.source.name} {how.name}",
        "metadata": json.dumps(dict(basis.loaded.model.metadata_props), sort_keys=True),
        "calibration": seen,
        "known": repr(known),
        "settings": json.dumps(chosen if how.scheme is not None else {}, sort_keys=True),
        "plan": plan_files.format_plan(how.plan) if how.plan is not None else "",
        "scheme": repr(how.scheme and (how.scheme.name, how.scheme.activations)),
        "rest": how.options.rest,
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
        **{name: version(name) for name in LIBRARIES},
    }
