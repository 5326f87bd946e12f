"""The variants of a run, a backend and a precision each: chosen, their graphs made, and built."""

import filecmp
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from qconvert import __version__, backends
from qconvert.backends import system_probe
from qconvert.backends.base import FLOAT, Availability, BuildSpec, EngineVariant, Profile
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import config_file, onnx_io
from qconvert.core.atomic import copy_into_place
from qconvert.core.cache import CacheResult, file_sha256
from qconvert.core.config import BuildConfig
from qconvert.core.errors import Unavailable, UsageError
from qconvert.core.progress import megabytes, share_reporter, start_step
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize import plan_files
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PlanWithWeights, weights_path
from qconvert.run.context import JobContext, RunContext
from qconvert.run.quantize_model import (
    QuantizeSpec,
    convert_precision,
    quantize_options,
    scheme_for,
)
from qconvert.run.run_folder import ENGINE_FILE, GRAPH_FILE, GRAPH_RECORD, PLAN_FILE
from qconvert.run.targets import BuiltEngine, read_engine
from qconvert.sources import LoadedModel

# The default backend is the first of these that runs here.
BACKENDS_BY_PREFERENCE = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")
LIBRARIES = ("onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class ChosenVariants:
    """The engines of a run, the availability of each backend, and notes on what is left out."""

    variants: tuple[EngineVariant, ...]
    available: dict[str, Availability]
    notes: tuple[str, ...]


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


def choose_variants(settings: BuildConfig, *, plan_only: bool) -> ChosenVariants:
    """Return every backend of the settings in every precision that makes sense there.

    Raise for a backend that cannot build here.
    """
    system = system_probe.detect()
    names: list[str] = list(dict.fromkeys(settings.backends))
    if not names:
        runs = (name for name in BACKENDS_BY_PREFERENCE if backends.probe(name, system).runs)
        names = [next(runs, "cpu")]
    available = {name: backends.probe(name, system) for name in names}
    for name, availability in available.items():
        if not plan_only and not availability.builds:
            cure = f"{availability.cure}; " if availability.cure else ""
            raise Unavailable(
                f"the backend `{name}` does not work here: {availability.reason}",
                hint=f"{cure}or go as far as this machine can: `--plan-only`",
            )
    variants, notes = list[EngineVariant](), list[str]()
    for name in names:
        unsupported = backends.requirements(name).unsupported
        for precision in dict.fromkeys(settings.precisions):
            if why := unsupported.get("int8" if precision == "mixed" else precision):
                notes.append(f"no {precision} for `{name}`: {why}")
            else:
                variants.append(EngineVariant(name, precision))
    if not variants:
        raise UsageError(notes[0], details=notes[1:], hint="choose others: `--precision fp16`")
    return ChosenVariants(tuple(variants), available, tuple(notes))


def make_graph(variant: EngineVariant, inputs: BuildInputs, context: JobContext) -> VariantGraph:
    """Return the graph of a variant; cached."""
    end = start_step(context.progress, "quantize")
    spec = _quantize_spec(variant, inputs, context)
    model, calibration = inputs.loaded.model, inputs.calibration

    def make(folder: Path) -> None:
        result = convert_precision(inputs.loaded, calibration, spec, context)
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

    # A resumed run knows less than a new one: it has one calibration, and cannot recalibrate.
    abilities = calibration and (
        calibration.excludes_holdout,
        calibration.images is not None,
        calibration.has_holdout,
        calibration.can_recalibrate,
    )
    settings = config_file.as_dict(context.config)["quantize"] if spec.scheme is not None else {}
    key = {
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
    entry = context.cache.get_or_make("rewrite", key, make)
    if entry.hit:
        end(spec.name, True)
    plan_file = entry.path / PLAN_FILE
    plan = plan_files.read_plan(plan_file) if plan_file.is_file() else None
    record = json.loads((entry.path / GRAPH_RECORD).read_text(encoding="utf-8"))
    return VariantGraph(entry.path, plan, record["islands"], tuple(record["notes"]))


def engine_settings(context: JobContext, backend: str) -> dict[str, str | int | bool]:
    """Return the settings of a backend, by the names that it knows."""
    table = asdict(getattr(context.config, backend.replace("-", "_")))
    return {name.replace("_", "-"): value for name, value in table.items()}


def build_engine(variant: EngineVariant, graph: VariantGraph, context: RunContext) -> BuiltEngine:
    """Return the engine of a variant, in the folder of the run."""
    end = start_step(context.progress, "build", variant.name)
    entry = cached_engine(variant, graph, context)
    folder = context.folder.engine(variant.name)
    names = [path.name for path in entry.path.iterdir() if path.is_file()]
    if filecmp.cmpfiles(entry.path, folder, names, shallow=False)[0] != names:
        copy_into_place(entry.path, folder)
    built = replace(read_engine(folder), stored=entry.hit)
    end(f"{variant.name}, {megabytes(built.engine.bytes)}", entry.hit)
    return built


def cached_engine(variant: EngineVariant, graph: VariantGraph, context: JobContext) -> CacheResult:
    """Return an engine in the cache; the same graph, options and machine are built only once."""
    backend, spec = backends.load(variant.backend), _build_spec(variant, context)
    key = {"model": file_sha256(graph.path), "name": variant.name, **backend.cache_key(spec)}
    report = share_reporter(context.progress, "build", f"{variant.name}: ")

    def make(folder: Path) -> None:
        started = time.perf_counter()
        engine = backend.build(graph.path, spec, folder, report)
        for name in (PLAN_FILE, weights_path(Path(PLAN_FILE)).name, GRAPH_RECORD):
            if (graph.folder / name).is_file():
                shutil.copyfile(graph.folder / name, folder / name)
        seconds = time.perf_counter() - started
        record = {**asdict(engine), "folder": ".", "build_seconds": seconds}
        text = json.dumps(record, indent=1, sort_keys=True)
        (folder / ENGINE_FILE).write_text(text, encoding="utf-8")

    return context.cache.get_or_make("engine", key, make)


def require_readable_graph(variant: EngineVariant, graph: Path, context: JobContext) -> None:
    """Raise for a float graph that the backend cannot read, whatever the precision; cached."""
    backend = backends.load(variant.backend)
    spec = _build_spec(replace(variant, precision="fp32"), context)
    key = {"graph": onnx_io.fingerprint(onnx_io.load(graph)), **backend.cache_key(spec)}
    context.cache.get_or_make("read", key, lambda _: backend.require_readable(graph, spec))


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


def _build_spec(variant: EngineVariant, context: JobContext) -> BuildSpec:
    """Return how an engine is built; builders keep their timings for the next build."""
    settings = engine_settings(context, variant.backend)
    if settings.get("timing-cache") == "":
        settings["timing-cache"] = str(context.cache.root / "timings")
    return BuildSpec(
        variant.precision,
        Profile(*context.config.build.profile),
        int(settings.pop("threads", 0)),
        settings,
        context.config.quantize.rest or backends.requirements(variant.backend).default_rest,
    )
