"""Search for mixed precision: as one more engine of a run, and as a job of its own."""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydantic

from qconvert import __version__, backends
from qconvert.backends.base import Availability, Engine, EngineVariant
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core import atomic, onnx_io
from qconvert.core.cache import JsonCodec
from qconvert.core.config import BuildConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ProgressCallback, ignore_progress, start_step
from qconvert.core.tensors import Tensors, batch_size, fixed_batch, pad_batch, unpad_batch
from qconvert.images.labels import check_classes
from qconvert.measure.latency import summarize_latency
from qconvert.measure.machine import describe_machine
from qconvert.measure.mixed_result import MixedResult
from qconvert.optimize.blocks import MAX_BLOCKS, find_blocks
from qconvert.optimize.mixed_precision import (
    BlockSet,
    Rereadable,
    SearchImages,
    SearchModel,
    SearchSpace,
    SetTimer,
    cache_batches,
    search_mixed_precision,
)
from qconvert.optimize.trials import ReferenceOutputs, open_trials
from qconvert.quantize import plan_files
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.plan_files import PlanWithWeights, weights_path
from qconvert.report.verdict import conclude
from qconvert.run import (
    build_inputs,
    report_files,
    run_folder,
    targets,
    variants,
)
from qconvert.run.bench import time_engines
from qconvert.run.context import (
    EVALUATION_BATCH,
    EvaluationSet,
    JobContext,
    RunContext,
    open_evaluation_set,
)
from qconvert.run.quantize import QuantizeRequest, preview_layers
from qconvert.run.quantize_model import scheme_for
from qconvert.run.run_folder import PLAN_FILE, SEARCH_RESULT
from qconvert.run.variants import BuildInputs, ChosenVariants, engine_settings, make_graph

MIXED_MODEL, TRIALS = "mixed.onnx", "trials.jsonl"
PLAN_FILES = (PLAN_FILE, weights_path(Path(PLAN_FILE)).name)
MAX_TIMING_SECONDS = 1.0
MIN_SEARCH_IMAGES = 32
SAME_IMAGES = "no `--eval`: the mix is confirmed on the same images that it was found on"
FEW_SEARCH_IMAGES = (
    "blocks were tried on {} images only: give more with `--images`, a fifth of them is held out "
    "for this"
)
MIX = JsonCodec("mix.json", pydantic.TypeAdapter(MixedResult))

# A batch as the model takes it, with a label or None for each image that is no repetition.
LabelledBatch = tuple[Tensors, Sequence[int | None]]


@dataclass(frozen=True)
class SearchTask:
    """The backend to search for, the inputs, and the images that confirm a mix."""

    backend: str
    inputs: BuildInputs
    evaluation_set: EvaluationSet | None
    available: Availability


def search_backend(
    task: SearchTask, context: RunContext, trials: Path
) -> tuple[MixedResult, PlanWithWeights | None]:
    """Search for one backend, and return the result and the plan of the mix, if there is one.

    An interrupted search resumes from its trials, a line each.
    """
    end = start_step(context.progress, "search")
    int8 = EngineVariant(task.backend, "int8")
    graph = make_graph(int8, task.inputs, context)
    plain = plan_files.load_plan(graph.folder / PLAN_FILE)
    scheme = scheme_for(context.config.quantize, backends.requirements(task.backend))
    model = SearchModel(task.inputs.loaded.model, plain.plan, scheme, plain.weights)

    def make(folder: Path) -> None:
        mix = _run_search(task, model, context, trials)
        MIX.save(mix, folder)
        if mix.outcome == "mixed" and mix.chosen is not None:
            blocks = find_blocks(model.model, model.plan)
            plan = model.restore_float([row for row in blocks if row.name in mix.chosen.lifted])
            plan_files.save_plan(PlanWithWeights(plan, model.weights), folder / PLAN_FILE)
        shutil.copyfile(trials, folder / TRIALS)

    entry = context.cache.get_or_make("search", _search_key(task, model, context), make)
    if entry.hit:
        trials.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.path / TRIALS, trials)
    mix, plan = MIX.load(entry.path), entry.path / PLAN_FILE
    end(mix.why, entry.hit)
    return mix, plan_files.load_plan(plan) if plan.is_file() else None


def _run_search(
    task: SearchTask, model: SearchModel, context: RunContext, trials: Path
) -> MixedResult:
    context.progress(Progress("search", "FP32 outputs"))
    search_images = make_search_images(task.inputs)
    evaluation_images, notes = search_images, [SAME_IMAGES]
    if task.evaluation_set is not None:
        evaluation_images, notes = make_evaluation_images(task.inputs, task.evaluation_set), []
    images = len(search_images.reference.labels)
    notes += [FEW_SEARCH_IMAGES.format(images)] if images < MIN_SEARCH_IMAGES else []
    if context.cache.fresh:
        trials.unlink(missing_ok=True)
    runs = task.available.runs
    settings = context.config.search
    space = SearchSpace(
        model,
        find_blocks(model.model, model.plan),
        search_images,
        evaluation_images,
        open_trials(trials, _model_key(task, model)),
        settings.budget,
        settings.by,
        _rest_precision(context, task.backend),
        settings.max_latency,
        timer=make_timer(model, task.backend, task.inputs, context) if runs else None,
        untimed="" if runs else task.available.reason,
    )
    return replace(search_mixed_precision(space, context.progress), notes=tuple(notes))


def _rest_precision(context: JobContext, backend: str) -> RestPrecision:
    return context.config.quantize.rest or backends.requirements(backend).default_rest


def _model_key(task: SearchTask, model: SearchModel) -> str:
    """Return what decides every trial, as a hash; its set and images are in the trial's name."""
    calibration = task.inputs.calibration
    decided = [
        onnx_io.fingerprint(model.model),
        plan_files.format_plan(model.plan),
        calibration.full.origin.fingerprint if calibration is not None else "",
        __version__,
        ORT_VERSION,
        version("numpy"),
    ]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


def _search_key(task: SearchTask, model: SearchModel, context: RunContext) -> dict[str, str]:
    config, images, runs = context.config, task.evaluation_set, task.available.runs
    # How engines are built decides how long they take, which is a part of the result.
    engines = [engine_settings(context, task.backend), config.build.profile]
    return {
        "name": f"{task.backend} {config.search.budget:g}",
        "model": onnx_io.fingerprint(model.model),
        "subject": _model_key(task, model),
        "settings": json.dumps(asdict(config.search), sort_keys=True),
        "exam": images.digest() if images is not None else "",
        "bench": json.dumps(asdict(config.bench), sort_keys=True),
        "engines": json.dumps(engines, sort_keys=True) if runs else "",
        "machine": json.dumps(describe_machine(), sort_keys=True) if runs else "",
    }


def make_search_images(inputs: BuildInputs) -> SearchImages:
    """Return the calibration images that are held out; they have no labels."""
    calibration = inputs.calibration
    if calibration is None or not calibration.images_available:
        raise UsageError("a search needs calibration images", hint="name a folder: `--images PATH`")

    def batches() -> Iterator[LabelledBatch]:
        left = calibration.validation_count
        for batch in calibration.validation_batches():
            count = min(batch_size(batch), left)
            left -= count
            yield batch, [None] * count

    return _make_images("search", inputs, batches)


def make_evaluation_images(inputs: BuildInputs, evaluation_set: EvaluationSet) -> SearchImages:
    """Return the evaluation images in batches that the model takes.

    If the model fixes the batch, an incomplete batch is left out, or repeated if it is the only
    one. Unreadable images are skipped with their labels.
    """
    size = fixed_batch(inputs.loaded.source.inputs)

    def batches() -> Iterator[LabelledBatch]:
        for number, batch in enumerate(evaluation_set.images.batches(size or EVALUATION_BATCH)):
            if not size or not number or len(batch.items) == size:
                feeds = pad_batch(batch.feeds, size) if size else batch.feeds
                yield feeds, [item.label for item in batch.items]

    images = _make_images(f"evaluation {evaluation_set.digest()[:12]}", inputs, batches)
    scores = np.asarray(images.reference.outputs[0][images.reference.score_output])
    check_classes(evaluation_set.images, scores.shape[1])
    return images


def _make_images(
    name: str, inputs: BuildInputs, read: Callable[[], Iterator[LabelledBatch]]
) -> SearchImages:
    batches, run = cache_batches(read), open_cpu(inputs.loaded.model)
    outputs, labels = list[Tensors](), list[int | None]()
    for batch, batch_labels in batches:
        outputs.append(unpad_batch(run(batch), len(batch_labels), batch_size(batch)))
        labels += batch_labels
    if not outputs:
        raise QConvertError("no images to search on", hint="give more: `--images PATH`")
    reference = ReferenceOutputs(outputs, labels)
    if not reference.score_output:
        raise QConvertError(
            "`--budget` needs a classification output; this model has none",
            hint="`qconvert compare` ranks layers by their error, `--exclude` keeps them in float",
        )
    return SearchImages(name, Rereadable(lambda: (batch for batch, _ in batches)), reference)


def make_timer(
    model: SearchModel, backend: str, inputs: BuildInputs, context: RunContext
) -> SetTimer:
    """Return what builds engines of sets and times them in turns, at the first batch size."""
    config = context.config
    bench = replace(
        config.bench,
        batch_sizes=config.bench.batch_sizes[:1],
        seconds=min(MAX_TIMING_SECONDS, config.bench.seconds),
    )
    context = replace(context, progress=_hide_finished_steps(context.progress))

    def build(variant: EngineVariant, inputs: BuildInputs) -> Engine:
        graph = make_graph(variant, inputs, replace(context, progress=ignore_progress))
        entry = variants.cached_engine(variant, graph, context)
        return targets.read_engine(entry.path).engine

    def time_sets(sets: Sequence[BlockSet]) -> dict[tuple[str, ...] | None, float]:
        engines = {
            "float": build(EngineVariant(backend, _rest_precision(context, backend)), inputs)
        }
        names: dict[str, tuple[str, ...] | None] = {"float": None}
        for number, blocks in enumerate(sets, 1):
            name, variant, plans = "int8", EngineVariant(backend, "int8"), dict(inputs.plans)
            if blocks:
                name, variant = f"set {number}", EngineVariant(backend, "mixed")
                plans[variant.name] = PlanWithWeights(model.restore_float(blocks), model.weights)
            engines[name] = build(variant, replace(inputs, plans=plans))
            names[name] = tuple(block.name for block in blocks)
        latencies = time_engines(engines, bench, context)
        return {
            names[name]: summarize_latency(timed[0]).median_ms for name, timed in latencies.items()
        }

    return time_sets


def _hide_finished_steps(progress: ProgressCallback) -> ProgressCallback:
    """Report running steps only, as parts of one search."""

    def report(event: Progress) -> None:
        if event.seconds is None:
            progress(replace(event, step="search"))

    return report


@dataclass(frozen=True)
class VariantsWithMixes:
    """The engines to make, and inputs that have the plans of the mixes that were found."""

    chosen: ChosenVariants
    inputs: BuildInputs
    mixes: Mapping[str, MixedResult] = field(default_factory=dict)


def add_mixed_variants(
    chosen: ChosenVariants,
    inputs: BuildInputs,
    evaluation_set: EvaluationSet | None,
    context: RunContext,
) -> VariantsWithMixes:
    """Search for every mix asked for; without a result it is left out, and a note says why."""
    kept, dropped = list[EngineVariant](), list[EngineVariant]()
    notes, mixes = list(chosen.notes), dict[str, MixedResult]()
    for variant in chosen.variants:
        if variant.precision != "mixed" or _is_already_searched(variant, inputs, context):
            kept.append(variant)
            continue
        available = chosen.available[variant.backend]
        task = SearchTask(variant.backend, inputs, evaluation_set, available)
        trials = context.folder.root / "analysis" / f"{variant.backend}-{TRIALS}"
        mix, plan = search_backend(task, context, trials)
        mixes[variant.backend] = mix
        notes += (note for note in mix.notes if note not in notes)
        if plan is None:
            notes.append(f"no `{variant.name}`: {mix.why}")
            dropped.append(variant)
            # An engine from an earlier search had another goal.
            atomic.remove_folder(context.folder.engine(variant.name))
        else:
            kept.append(variant)
            inputs = replace(inputs, plans={**inputs.plans, variant.name: plan})
    if not kept:
        _drop_from_report({variant.name for variant in dropped}, mixes, context)
        raise QConvertError(notes[-1], hint="build others: `--precision fp32,int8`")
    chosen = replace(chosen, variants=tuple(kept), notes=tuple(notes))
    return VariantsWithMixes(chosen, inputs, mixes)


def _drop_from_report(
    names: Collection[str], mixes: Mapping[str, MixedResult], context: RunContext
) -> None:
    """Remove engines from the report of a run that has nothing new to report."""
    before = report_files.previous_report(context.folder)
    if before is not None:
        rows = tuple(row for row in before.variants if row.name not in names)
        after = replace(before, variants=rows, mixes={**before.mixes, **mixes})
        report_files.write_report(conclude(after, context.config.gate), context.folder)


def _is_already_searched(variant: EngineVariant, inputs: BuildInputs, context: RunContext) -> bool:
    """Whether the run has the mix already, from a search with the same goal."""
    if variant.name not in inputs.plans:
        return False
    report, goal = report_files.previous_report(context.folder), context.config.search
    mix = report.mixes.get(variant.backend) if report is not None else None
    if mix is None:  # nothing says what the goal was
        return True
    same = (mix.budget, mix.max_latency) == (goal.budget, goal.max_latency)
    return same and goal.by in (None, mix.by)


@dataclass(frozen=True)
class SearchSummary:
    """The result of a search for a backend, and the bytes of the FP32, INT8 and mixed graphs."""

    backend: str
    mix: MixedResult
    sizes: Mapping[str, int]
    notes: tuple[str, ...]


def run_search(job: JobContext, out: Path, workers: int | None = None) -> SearchSummary:
    """Search for one backend, and leave the mix, its plan and all trials in a folder."""
    config = job.config
    variant, chosen = _choose_backend(config.build)
    available = chosen.available[variant.backend]
    with run_folder.begin_run(out, config, searching=True) as folder:
        context = job.in_run(folder)
        inputs = build_inputs.prepare_inputs([variant], context, building=available.builds)
        images = open_evaluation_set(inputs.loaded.source, context, workers)
        task = SearchTask(variant.backend, inputs, images, available)
        mix, plan = search_backend(task, context, folder.root / TRIALS)
        int8 = make_graph(replace(variant, precision="int8"), inputs, context)
        sizes = {"fp32": _model_bytes(folder.model), "int8": _model_bytes(int8.path)}
        for name in (MIXED_MODEL, *PLAN_FILES):  # of an earlier search with another goal
            (folder.root / name).unlink(missing_ok=True)
        if plan is not None:
            inputs = replace(inputs, plans={variant.name: plan})
            graph = make_graph(variant, inputs, context)
            atomic.copy_into_place(graph.path, folder.root / MIXED_MODEL)
            for name in PLAN_FILES:
                if (graph.folder / name).is_file():
                    atomic.copy_into_place(graph.folder / name, folder.root / name)
            sizes["mixed"] = _model_bytes(folder.root / MIXED_MODEL)
        text = json.dumps(asdict(mix), indent=1) + "\n"
        atomic.write_text(folder.root / SEARCH_RESULT, text)
        return SearchSummary(variant.backend, mix, sizes, chosen.notes)


def _choose_backend(settings: BuildConfig) -> tuple[EngineVariant, ChosenVariants]:
    """Return the one backend to search for."""
    only_mixed = replace(settings, precisions=("mixed",))
    chosen = variants.choose_variants(only_mixed, plan_only=True)
    if len(chosen.variants) > 1:
        names = ", ".join(f"`{variant.backend}`" for variant in chosen.variants)
        raise UsageError(f"a search is for one backend, not for {names}", hint="name one of them")
    return chosen.variants[0], chosen


def _model_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in onnx_io.model_files(path))


def preview_search(context: JobContext) -> list[str]:
    """Return what a search would try; no image is read and nothing is written."""
    config = context.config
    variant, chosen = _choose_backend(config.build)
    request = QuantizeRequest(Path("model.onnx"), variant.backend, "int8")
    layers = preview_layers(context, request)
    weighted = sum(not layer.left and layer.weight is not None for layer in layers.values())
    available = chosen.available[variant.backend]
    return [
        f"model     {config.model}",
        f"backend   {variant.backend}: {'runs here' if available.runs else available.reason}",
        f"calibrate {config.calibration.images or 'no images'}",
        f"blocks    {min(weighted, MAX_BLOCKS)}, of {weighted} operators with weights in INT8",
        f"budget    {config.search.budget:g} points",
        f"confirm   {config.evaluate.images or 'on the images of the search'}",
    ]
