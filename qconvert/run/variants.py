"""The engines of a run: chosen, their inputs prepared, their graphs made, and built."""

import filecmp
import json
import shlex
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qconvert import backends, sources
from qconvert.backends import system_probe
from qconvert.backends.base import FLOAT, Availability, BuildSpec, Engine, EngineVariant, Profile
from qconvert.calibrate.calibration import Calibration, load_calibration, save_calibration
from qconvert.core import atomic, config_file, onnx_io
from qconvert.core.cache import JsonCodec, file_sha256
from qconvert.core.config import BuildConfig, ExportConfig, QuantizeConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from qconvert.core.formats import Precision, quantized_format
from qconvert.core.progress import megabytes, share_reporter, start_step
from qconvert.core.run_files import ENGINES, GRAPH_FILE, PLAN_FILE
from qconvert.images.listing import ImageEntry, sha256sum_text
from qconvert.measure.training_curve import TrainingCurve
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize import plan_files
from qconvert.quantize.dynamic import is_mostly_products
from qconvert.quantize.plan import Plan, RestPrecision
from qconvert.quantize.trained_qdq import TrainedModel
from qconvert.run.calibrate import load_calibration_set, measure_calibration_set
from qconvert.run.context import JobContext, RunContext, cache_key, with_preprocessing
from qconvert.run.export import crash_check_once
from qconvert.run.quantize import QuantizeSpec, convert_precision, place_layers, require_quantizable
from qconvert.run.quantize_request import (
    require_float_source,
    require_portable_has_effect,
    require_settings_have_effect,
)
from qconvert.run.quantized_source import load_float, plan_of_training
from qconvert.run.run_folder import ENGINE_FILE, GRAPH_RECORD, OTHER_FOLDER, RunFolder
from qconvert.run.targets import read_engine
from qconvert.run.training import TrainedPlan, require_torch, require_trainable
from qconvert.sources import LoadedModel

DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
# The default backend is the first of these that runs here.
BACKENDS_BY_PREFERENCE = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")
CURVE = JsonCodec("training.json", TrainingCurve)


@dataclass(frozen=True)
class ChosenVariants:
    """The engines of a run, the availability of each backend, and notes on what is left out."""

    variants: tuple[EngineVariant, ...]
    available: dict[str, Availability]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BuildInputs:
    """The inputs of all graphs of a run; `plans` are those that the run already has.

    `trained` are those plans that come from a training, with notes and its curve if it ran here.
    """

    loaded: LoadedModel
    calibration: CalibrationSet | None
    plans: Mapping[str, plan_files.PlanWithWeights] = field(default_factory=dict)
    trained: Mapping[str, TrainedPlan] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantGraph:
    """The folder of a graph, and how the graph was made; `training` if its weights were trained."""

    folder: Path
    plan: Plan | None
    notes: tuple[str, ...]
    training: TrainingCurve | None = None

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH_FILE


def choose_variants(settings: BuildConfig, *, plan_only: bool) -> ChosenVariants:
    """Return each backend in every precision that it supports; raise for one that cannot build."""
    system = system_probe.detect()
    runs_here = (name for name in BACKENDS_BY_PREFERENCE if backends.probe(name, system).runs)
    names = settings.backends or [next(runs_here, "cpu")]
    available: dict[str, Availability] = {name: backends.probe(name, system) for name in names}
    for name, availability in available.items():
        if not plan_only and not availability.builds:
            cure = f"{availability.cure}; " if availability.cure else ""
            raise Unavailable(
                f"the backend `{name}` does not work here: {availability.reason}",
                hint=f"{cure}or write only the graphs: `--plan-only`",
            )
    variants, notes = list[EngineVariant](), list[str]()
    for name in available:
        requirements = backends.requirements(name)
        for precision in dict.fromkeys(settings.precisions or DEFAULT_PRECISIONS):
            if why := requirements.why_not(precision):
                notes.append(f"no {precision} for `{name}`: {why}")
            else:
                variants.append(EngineVariant(name, precision))
    if not variants:
        raise UsageError(notes[0], details=notes[1:], hint="choose others: `--precision fp16`")
    return ChosenVariants(tuple(variants), available, tuple(notes))


def choose_by_model(
    chosen: ChosenVariants,
    loaded: LoadedModel,
    settings: QuantizeConfig,
    plans: Collection[str],
    *,
    has_images: bool,
) -> ChosenVariants:
    """Return the default variants: dynamic INT8 too, where the network is mostly products.

    Without images it takes the place of INT8. What the run has a plan of is built again.
    """
    variants, notes = list[EngineVariant](), list(chosen.notes)
    for variant in chosen.variants:
        other = EngineVariant(variant.backend, "int8-dynamic")
        takes_other = not backends.requirements(other.backend).why_not(other.precision)
        is_tried = (variant.precision == "int8" and takes_other) and (
            other.name in plans
            or is_mostly_products(loaded.model.graph, place_layers(loaded.model, settings, other))
        )
        if not is_tried or has_images or variant.name in plans:
            variants.append(variant)
        else:
            notes.append(f"no `{variant.name}`: INT8 needs images, `--images PATH`")
        variants += [other] if is_tried else []
    return replace(chosen, variants=tuple(variants), notes=tuple(notes))


def prepare_inputs(
    chosen: ChosenVariants, context: RunContext, *, building: bool
) -> tuple[ChosenVariants, BuildInputs]:
    """Read, clean and calibrate the model, and write both into the run.

    Return the inputs, and the variants, which depend on the model where none are named.
    """
    config, folder, variants = context.config, context.folder, chosen.variants
    if quantized := [variant for variant in variants if variant.is_quantized]:
        require_portable_has_effect(config.quantize, [variant.backend for variant in quantized])
        require_settings_have_effect(config.quantize, quantized)
        require_torch(config.quantize)
    source = load_float(context, quantizing=bool(quantized))
    require_float_source(source, quantized)
    loaded = with_preprocessing(source.loaded, config.preprocess)
    if folder.model.is_file() and folder.has_results():
        earlier = onnx_io.fingerprint(onnx_io.load(folder.model))
        if earlier != onnx_io.fingerprint(loaded.model):
            raise UsageError(f"`{folder.root}` holds a run of another model", hint=OTHER_FOLDER)
    if not config.build.precisions and source.trained is None:
        has_images = config.calibration.images is not None
        chosen = choose_by_model(chosen, loaded, config.quantize, (), has_images=has_images)
        variants = chosen.variants
        quantized = [variant for variant in variants if variant.is_quantized]
        require_settings_have_effect(config.quantize, quantized)
    for variant in variants:
        _require_unedited_plan(folder.engine(variant.name) / PLAN_FILE, folder)
        if variant.is_quantized and source.trained is None:
            require_quantizable(loaded.model, config.quantize, variant)
    ranged = [variant.backend for variant in quantized if variant.needs_ranges]
    if ranged:
        require_trainable(loaded, context)
    for variant in variants if building else ():  # planning needs no builder
        _require_readable_graph(variant, loaded.path, context)
    inputs = BuildInputs(loaded, None)
    if source.trained is not None:
        inputs = _add_training(inputs, source.trained, ranged, context)
    if config.calibration.images is None:
        _require_ranges(variants, inputs.plans)
    onnx_io.save(loaded.model, folder.model)
    if config.calibration.images is None:
        return chosen, inputs
    calibration = measure_calibration_set(loaded, context)
    full = calibration.full
    others = set(folder.engines()) - {variant.name for variant in variants}
    names = [name for name in sorted(others) if (folder.engine(name) / PLAN_FILE).is_file()]
    if names and folder.calibration.is_file():
        before = load_calibration(folder.calibration)
        if before.origin.images != full.origin.images:
            raise UsageError(
                f"`{folder.root}` has engines that were calibrated on other images: "
                f"{', '.join(f'`{name}`' for name in names)}",
                hint="rebuild those too, with `--precision`, or choose another folder: `-o RUN`",
            )
    _save_calibration(full, folder)
    return chosen, replace(inputs, calibration=calibration)


def _add_training(
    inputs: BuildInputs, trained: TrainedModel, names: Sequence[str], context: RunContext
) -> BuildInputs:
    """Return the inputs with a plan of the training for each of these backends."""
    settings, trained_plans = context.config.quantize, dict[str, TrainedPlan]()
    for name in dict.fromkeys(names):
        variant = EngineVariant(name, "int8")
        rest = rest_precision(variant, context)
        trained_plans[variant.name] = plan_of_training(trained, name, rest, settings)
    plans = {name: row.saved for name, row in trained_plans.items()}
    return replace(inputs, plans=plans, trained=trained_plans)


def rest_precision(variant: EngineVariant, context: JobContext) -> RestPrecision:
    """Return the precision of what a variant does not quantize."""
    requirements = backends.requirements(variant.backend)
    native_builder = engine_settings(context, variant.backend).get("builder") == "native"
    if not (requirements.strongly_typed or native_builder):
        return "fp32"  # the builder is told the precision by flags
    return FLOAT.get(variant.precision) or context.config.quantize.rest or requirements.default_rest


def reload_inputs(
    chosen: ChosenVariants, context: RunContext
) -> tuple[ChosenVariants, BuildInputs]:
    """Read the inputs of an earlier run; this needs neither its images nor its source.

    Return them, and the variants, which depend on the run where none are named.
    """
    config, folder, variants = context.config, context.folder, chosen.variants
    crash_check_once(folder.model, folder.model)
    end = start_step(context.progress, "load")
    source = sources.load(str(folder.model), ExportConfig(), trust=False)
    end(str(folder.model), False)
    loaded = LoadedModel(source, source.model, folder.model, ())
    plans = {
        file.parent.name: plan_files.load_plan(file)
        for file in folder.root.glob(f"{ENGINES}/*/{PLAN_FILE}")
    }
    has_images = folder.calibration.is_file() or config.calibration.images is not None
    if not config.build.precisions:
        chosen = choose_by_model(chosen, loaded, config.quantize, plans, has_images=has_images)
        variants = chosen.variants
    for variant in variants:
        saved = plans.get(variant.name)
        if saved is not None and saved.plan.precision != quantized_format(variant.precision):
            raise UsageError(
                f"`{folder.engine(variant.name) / PLAN_FILE}` is a plan for {saved.plan.precision}",
                hint="delete it to make a new one",
            )
    if any(variant.needs_ranges and variant.name not in plans for variant in variants):
        require_torch(config.quantize)
        require_trainable(loaded, context)
    if not has_images:
        _require_ranges(variants, plans)
        return chosen, BuildInputs(loaded, None, plans)
    if not folder.calibration.is_file():
        # A run of `train.finish` has a plan, and gets images only now.
        calibration = measure_calibration_set(loaded, context)
        _save_calibration(calibration.full, folder)
        return chosen, BuildInputs(loaded, calibration, plans)
    calibration = load_calibration_set(loaded, context, folder.calibration, images_required=False)
    if calibration.images is None:
        images = config_file.absolute_paths(config).calibration.images
        if images != folder.settings().calibration.images:
            raise UsageError(
                f"`{images}` does not contain the images that `{folder.root}` was calibrated on",
                hint="give their new location, or leave out `--images`",
            )
    return chosen, BuildInputs(loaded, calibration, plans)


def _save_calibration(calibration: Calibration, folder: RunFolder) -> None:
    """Write a calibration, and the names and hashes of its images in the format of sha256sum."""
    save_calibration(calibration, folder.calibration)
    images = [calibration.origin.images[int(index)] for index in calibration.image_indices]
    entries = tuple(ImageEntry(image.name, image.sha256) for image in images)
    atomic.write_text(folder.calibration.with_name("images.txt"), sha256sum_text(entries))


def make_graph(variant: EngineVariant, inputs: BuildInputs, context: JobContext) -> VariantGraph:
    """Return the graph of a variant; cached."""
    end = start_step(context.progress, "quantize")
    model, calibration = inputs.loaded.model, inputs.calibration
    rest, schemes = rest_precision(variant, context), backends.requirements(variant.backend).schemes
    saved = inputs.plans.get(variant.name)
    is_new = variant.is_quantized and saved is None
    scheme = schemes[variant.format] if is_new else None
    spec = QuantizeSpec(variant, rest, saved)

    def make(folder: Path) -> None:
        result = convert_precision(inputs.loaded, calibration, spec, context)
        onnx_io.save(result.model, folder / GRAPH_FILE)
        if result.plan is not None:
            saved = plan_files.PlanWithWeights(result.plan, result.rounded_weights)
            plan_files.save_plan(saved, folder / PLAN_FILE)
        if result.training is not None:
            CURVE.save(result.training, folder)
        record = {
            "islands": result.islands,
            "notes": result.notes,
            "tried": [
                {"method": method, "distance": error}
                for method, error in result.method_errors.items()
            ],
        }
        (folder / GRAPH_RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    # A resumed run has only one calibration and cannot recalibrate.
    abilities = calibration and (calibration.can_recalibrate, calibration.images is not None)
    key = cache_key(
        f"{inputs.loaded.source.name} {variant.name}",
        onnx_io.fingerprint(model),
        metadata=dict(model.metadata_props),
        calibration=calibration and calibration.full.origin.fingerprint,
        known=abilities,
        settings=config_file.as_dict(context.config)["quantize"] if is_new else {},
        plan=saved and plan_files.plan_to_json(saved.plan),
        scheme=repr((variant.format, scheme.name, scheme.activations)) if scheme else "",
        rest=rest,
    )
    entry, hit = context.cache.get_or_make("rewrite", key, make)
    if hit:
        end(variant.name, True)
    plan_file = entry / PLAN_FILE
    plan = plan_files.read_plan(plan_file) if plan_file.is_file() else None
    record = json.loads((entry / GRAPH_RECORD).read_text(encoding="utf-8"))
    curve = CURVE.load(entry) if (entry / CURVE.file).is_file() else None
    notes = tuple(record["notes"])
    if (trained := inputs.trained.get(variant.name)) is not None:
        return VariantGraph(entry, plan, (*notes, *trained.notes), trained.curve)
    return VariantGraph(entry, plan, notes, curve)


def engine_settings(context: JobContext, backend: str) -> dict[str, str | int | bool]:
    """Return the settings of a backend, by the names that it knows."""
    table = asdict(getattr(context.config, backend.replace("-", "_")))
    return {name.replace("_", "-"): value for name, value in table.items()}


def build_engine(
    variant: EngineVariant, graph: VariantGraph, context: RunContext
) -> tuple[Engine, bool]:
    """Return the engine of a variant, in the folder of the run, and whether it was cached."""
    end = start_step(context.progress, "build", variant.name)
    engine, hit = cached_engine(variant, graph, context)
    folder = context.folder.engine(variant.name)
    names = [path.name for path in engine.folder.iterdir() if path.is_file()]
    if filecmp.cmpfiles(engine.folder, folder, names, shallow=False)[0] != names:
        atomic.copy_into_place(engine.folder, folder)
    end(f"{variant.name}, {megabytes(engine.bytes)}", hit)
    return replace(engine, folder=folder), hit


def cached_engine(
    variant: EngineVariant, graph: VariantGraph, context: JobContext
) -> tuple[Engine, bool]:
    """Return an engine in the cache; the same graph, options and machine are built only once."""
    backend, spec = backends.load(variant.backend), _build_spec(variant, context)
    key = {"model": file_sha256(graph.path), "name": variant.name, **backend.cache_key(spec)}
    report = share_reporter(context.progress, "build", f"{variant.name}: ")

    def make(folder: Path) -> None:
        started = time.perf_counter()
        engine = backend.build(graph.path, spec, folder, report)
        weights = plan_files.weights_path(Path(PLAN_FILE)).name
        for name in (PLAN_FILE, weights, CURVE.file, GRAPH_RECORD):
            if (graph.folder / name).is_file():
                shutil.copyfile(graph.folder / name, folder / name)
        record = {**asdict(engine), "folder": ".", "build_seconds": time.perf_counter() - started}
        text = json.dumps(record, indent=1, sort_keys=True)
        (folder / ENGINE_FILE).write_text(text, encoding="utf-8")

    entry, hit = context.cache.get_or_make("engine", key, make)
    return read_engine(entry), hit


def _require_readable_graph(variant: EngineVariant, graph: Path, context: JobContext) -> None:
    """Raise for a float graph that the backend cannot build from in this precision; cached."""
    backend = backends.load(variant.backend)
    spec = _build_spec(variant, context)
    key = {"graph": onnx_io.fingerprint(onnx_io.load(graph)), **backend.cache_key(spec)}
    context.cache.get_or_make("read", key, lambda _: backend.require_readable(graph, spec))


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


def _require_unedited_plan(plan: Path, folder: RunFolder) -> None:
    """Raise for a plan that the user has edited: rebuilding would overwrite it."""
    try:
        embedded = plan_files.read_embedded_plan(onnx_io.load(plan.with_name(GRAPH_FILE)))
        is_edited = embedded is not None and embedded != plan_files.read_plan(plan)
    except QConvertError:  # a missing or unreadable plan or graph is replaced
        return
    if is_edited:
        raise UsageError(
            f"`{plan}` differs from the plan of its graph, and would be overwritten",
            hint=f"`qconvert build --from {shlex.quote(str(folder.root))}` uses it; "
            "delete it to make a new one",
        )


def _require_ranges(variants: Sequence[EngineVariant], plans: Collection[str]) -> None:
    """Reject INT8 without a plan or calibration images."""
    if any(variant.needs_ranges and variant.name not in plans for variant in variants):
        raise UsageError(
            "INT8 needs the value range of every tensor",
            hint="start a new run with images: `--images PATH`, or leave out INT8: "
            "`--precision fp32,fp16`",
        )
