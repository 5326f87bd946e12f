"""The ONNX graph of every variant: made from the inputs of the build, and cached."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from qconvert import __version__, backends
from qconvert.backends.base import FLOAT, EngineVariant
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import config_file, onnx_io
from qconvert.core.progress import start_step
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize import plan_files
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.run.context import JobContext
from qconvert.run.quantize_model import (
    QuantizeSpec,
    convert_precision,
    quantize_options,
    scheme_for,
)
from qconvert.run.run_folder import GRAPH_FILE, GRAPH_RECORD, PLAN_FILE
from qconvert.sources import LoadedModel

LIBRARIES = ("onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class BuildInputs:
    """What all graphs of a run are made from; `plans` are those that the run already has."""

    loaded: LoadedModel
    calibration: CalibrationSet | None
    plans: Mapping[str, PlanWithWeights] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantGraph:
    """The folder of a graph, and how the graph was made."""

    folder: Path
    plan: Plan | None
    islands: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH_FILE


def make_graph(variant: EngineVariant, inputs: BuildInputs, context: JobContext) -> VariantGraph:
    """Return the graph of a variant; cached."""
    end = start_step(context.progress, "quantize")
    spec = _quantize_spec(variant, inputs, context)

    def make(folder: Path) -> None:
        result = convert_precision(inputs.loaded, inputs.calibration, spec, context)
        onnx_io.save(result.model, folder / GRAPH_FILE)
        if result.plan is not None:
            saved = PlanWithWeights(result.plan, result.rounded_weights)
            plan_files.save_plan(saved, folder / PLAN_FILE)
        record = {
            "islands": result.islands,
            "notes": result.notes,
            "tried": [asdict(score) for score in result.method_scores],
        }
        (folder / GRAPH_RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    entry = context.cache.get_or_make("rewrite", _cache_key(spec, inputs, context), make)
    if entry.hit:
        end(spec.name, True)
    return read_graph(entry.path)


def read_graph(folder: Path) -> VariantGraph:
    """Return the graph in a folder."""
    plan = plan_files.read_plan(folder / PLAN_FILE) if (folder / PLAN_FILE).is_file() else None
    record = json.loads((folder / GRAPH_RECORD).read_text(encoding="utf-8"))
    return VariantGraph(folder, plan, record["islands"], tuple(record["notes"]))


def engine_settings(context: JobContext, backend: str) -> dict[str, str | int | bool]:
    """Return the settings of a backend, by the names that it knows."""
    table = asdict(getattr(context.config, backend.replace("-", "_")))
    return {name.replace("_", "-"): value for name, value in table.items()}


def _quantize_spec(
    variant: EngineVariant, inputs: BuildInputs, context: JobContext
) -> QuantizeSpec:
    requirements = backends.requirements(variant.backend)
    settings = context.config.quantize
    native_builder = engine_settings(context, variant.backend).get("builder") == "native"
    strongly_typed = requirements.strongly_typed or native_builder
    float_precision = FLOAT.get(variant.precision)
    rest = float_precision or settings.rest or requirements.default_rest
    options = replace(quantize_options(settings), rest=rest if strongly_typed else "fp32")
    if float_precision is not None:
        return QuantizeSpec(variant.name, options)
    saved = inputs.plans.get(variant.name)
    if saved is not None:
        plan = replace(saved.plan, rest=options.rest)
        return QuantizeSpec(variant.name, options, plan=plan, rounded_weights=saved.weights)
    scheme = scheme_for(settings, requirements)
    return QuantizeSpec(variant.name, options, scheme, effort=settings.effort)


def _cache_key(spec: QuantizeSpec, inputs: BuildInputs, context: JobContext) -> dict[str, str]:
    calibration, model = inputs.calibration, inputs.loaded.model
    # A resumed run knows less than a new one: it has one calibration, and cannot recalibrate.
    abilities = calibration and (
        calibration.excludes_holdout,
        calibration.images_available,
        calibration.has_holdout,
        calibration.can_recalibrate,
    )
    settings = config_file.as_dict(context.config)["quantize"] if spec.scheme is not None else {}
    return {
        "model": onnx_io.fingerprint(model),
        "name": f"{inputs.loaded.source.name} {spec.name}",
        "metadata": json.dumps(dict(model.metadata_props), sort_keys=True),
        "calibration": calibration.full.origin.fingerprint if calibration is not None else "",
        "known": repr(abilities),
        "settings": json.dumps(settings, sort_keys=True),
        "plan": plan_files.format_plan(spec.plan) if spec.plan is not None else "",
        "scheme": repr(spec.scheme and (spec.scheme.name, spec.scheme.activations)),
        "rest": spec.options.rest,
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
        **{name: version(name) for name in LIBRARIES},
    }
