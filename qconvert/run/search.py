"""Search for mixed precision: as one more engine of a run, and as a job of its own."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from qconvert import backends
from qconvert.backends.base import Availability, Engine, EngineVariant, scheme_for
from qconvert.backends.ort import open_cpu
from qconvert.core import atomic, onnx_io
from qconvert.core.cache import JsonCodec
from qconvert.core.config import BuildConfig, SearchConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ignore_progress, start_step
from qconvert.core.run_files import PLAN_FILE
from qconvert.core.tensors import Tensors, batch_size, fixed_batch, pad_batch
from qconvert.images.arrays import identity_frames
from qconvert.images.frames import Frame
from qconvert.images.listing import ImageEntry, Images
from qconvert.measure.machine import describe_machine
from qconvert.measure.mixed_result import MixedResult, SearchStep
from qconvert.optimize.blocks import MAX_BLOCKS, find_blocks
from qconvert.optimize.faster_blocks import BlockSet, SetTimer, SetTimes, names_of
from qconvert.optimize.mixed_precision import (
    MAX_CACHED_BYTES,
    Profiler,
    Profiles,
    SearchModel,
    SearchSpace,
    open_trials,
    search_mixed_precision,
)
from qconvert.optimize.trial_records import SearchImages
from qconvert.quantize import plan_files
from qconvert.quantize.plan import Plan, RestPrecision
from qconvert.quantize.plan_files import PlanWithWeights, weights_path
from qconvert.report.verdict import conclude
from qconvert.run import report_files, run_folder, variants
from qconvert.run.bench import profile_operators, time_engines
from qconvert.run.context import (
    EVALUATION_BATCH,
    JobContext,
    RunContext,
    cache_key,
    open_evaluation_set,
    own_code,
    task_request,
)
from qconvert.run.quantize import preview_layers
from qconvert.run.quantize_request import QuantizeRequest
from qconvert.run.run_folder import SEARCH_RESULT
from qconvert.run.training import TRAIN
from qconvert.run.variants import BuildInputs, ChosenVariants, engine_settings, make_graph
from qconvert.tasks.reading import Reading, TaskRequest, choose_reading, padded_frames

MIXED_MODEL, TRIALS = "mixed.onnx", "trials.jsonl"
PLAN_FILES = (PLAN_FILE, weights_path(Path(PLAN_FILE)).name)
MIX = JsonCodec("mix.json", MixedResult)

# A batch of the model's size, with the entry and the frame of each image that is not padding.
LabelledBatch = tuple[Tensors, Sequence[ImageEntry], Sequence[Frame]]
ReadBatches = Callable[[], Iterator[LabelledBatch]]


@dataclass(frozen=True)
class RereadBatches:
    """Batches too large to hold, read again every time."""

    read: ReadBatches

    def __iter__(self) -> Iterator[Tensors]:
        return (batch for batch, *_ in self.read())


def search_backend(
    available: Availability,
    backend: str,
    inputs: BuildInputs,
    evaluation_set: Images | None,
    context: RunContext,
    trials: Path,
) -> tuple[MixedResult, PlanWithWeights | None]:
    """Search for one backend, resuming from `trials`; return the result, and the plan of a mix."""
    end, config = start_step(context.progress, "search"), context.config
    graph = make_graph(EngineVariant(backend, "int8"), inputs, context)
    plain = plan_files.load_plan(graph.folder / PLAN_FILE)
    requirements = backends.requirements(backend)
    scheme = scheme_for(config.quantize, requirements)
    model = SearchModel(inputs.loaded.model, plain.plan, scheme, plain.weights)
    subject = _trial_subject(model, inputs)
    rest = config.quantize.rest or requirements.default_rest
    timer = make_timer(model, backend, rest, inputs, context) if available.runs else None
    # Other backends compile whole graphs, whose operators have no times of their own.
    has_profile = available.runs and backend == "cpu" and config.search.by_latency
    profiler = make_profiler(backend, rest, inputs, context) if has_profile else None
    settings = [asdict(config.search), asdict(config.bench)]
    # Build options decide the latencies, which are part of the result.
    engines = [engine_settings(context, backend), config.build.profile, describe_machine()]
    key = cache_key(
        f"{backend} {config.search.budget:g}",
        onnx_io.fingerprint(model.model),
        subject=subject,
        settings=[*settings, *engines] if available.runs else settings,
        exam=evaluation_set and evaluation_set.digest(),
        task=[asdict(task_request(config.evaluate)), own_code(config.evaluate)],
    )

    def make(folder: Path) -> None:
        images, evaluation = _run_fp32(inputs, evaluation_set, context)
        if context.cache.fresh:
            trials.unlink(missing_ok=True)
        space = SearchSpace(
            model,
            find_blocks(model.model, model.plan),
            images,
            evaluation,
            open_trials(trials, subject),
            config.search,
            rest,
            timer,
            untimed="" if timer else available.reason,
            profiler=profiler,
        )
        _search(space, folder, context)
        shutil.copyfile(trials, folder / TRIALS)

    entry, hit = context.cache.get_or_make("search", key, make)
    if hit:
        trials.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry / TRIALS, trials)
    mix, mixed_plan = MIX.load(entry), entry / PLAN_FILE
    end(mix.why, hit)
    return mix, plan_files.load_plan(mixed_plan) if mixed_plan.is_file() else None


def _run_fp32(
    inputs: BuildInputs, evaluation_set: Images | None, context: RunContext
) -> tuple[SearchImages, SearchImages]:
    """Return the images of the search and those of the evaluation, else the same, with outputs."""
    context.progress(Progress("search", "FP32 outputs"))
    request, evaluation = task_request(context.config.evaluate), None
    if evaluation_set is not None:
        evaluation = make_evaluation_images(inputs, evaluation_set, request)
    images = make_search_images(inputs, request, evaluation)
    return images, evaluation or images


def _search(space: SearchSpace, folder: Path, context: RunContext) -> None:
    """Search a space, and write the result and the plan of a mix."""
    mix = search_mixed_precision(space, context.progress)
    mix = replace(mix, notes=_weaknesses(space, mix))
    MIX.save(mix, folder)
    if mix.outcome == "mixed" and mix.chosen is not None:
        plan = _plan_of(space, mix, mix.chosen)
        plan_files.save_plan(PlanWithWeights(plan, space.model.weights), folder / PLAN_FILE)


def _plan_of(space: SearchSpace, mix: MixedResult, chosen: SearchStep) -> Plan:
    """Return the plan with the blocks of a set in float, and why they are."""
    for_speed = mix.faster.lifted if mix.faster is not None else ()
    faster = [block for block in space.blocks if block.name in for_speed]
    others = {*chosen.lifted} - {*for_speed}
    model = space.model.keep_faster(faster)
    return model.restore_float([block for block in space.blocks if block.name in others])


def _trial_subject(model: SearchModel, inputs: BuildInputs) -> str:
    """Return a hash of what decides every trial; its set and images are in the trial's name."""
    origin = inputs.calibration and inputs.calibration.full.origin.fingerprint
    fingerprint, plan = onnx_io.fingerprint(model.model), plan_files.plan_to_json(model.plan)
    key = cache_key("trials", fingerprint, plan=plan, calibration=origin)
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _weaknesses(space: SearchSpace, mix: MixedResult) -> tuple[str, ...]:
    notes = []
    if mix.faster is not None:
        notes.append(f"blocks that run faster in {mix.rest} were timed on this machine alone")
    if space.evaluation_images is space.search_images:
        notes.append("no `--eval`: the mix is confirmed on the images of the search itself")
    if (count := len(space.search_images.items)) < 32:
        notes.append(
            f"blocks were tried on only {count} images: add more to `--images`; the search "
            "uses a held-out fifth of them"
        )
    return tuple(notes)


def make_search_images(
    inputs: BuildInputs,
    request: TaskRequest,
    evaluation: SearchImages | None = None,
    max_bytes: int = MAX_CACHED_BYTES,
) -> SearchImages:
    """Return the calibration images that are held out; they have no labels.

    They are read as the `evaluation` images are, if there are any.
    """
    calibration = inputs.calibration
    if calibration is None or calibration.images is None:
        raise UsageError("a search needs calibration images", hint="name a folder: `--images PATH`")

    def read() -> Iterator[LabelledBatch]:
        left = calibration.validation_count
        for batch in calibration.validation_batches():
            count = min(batch_size(batch), left)
            left -= count
            yield batch, [ImageEntry("")] * count, identity_frames(batch, count)

    images = _make_images("search", inputs, read, max_bytes)
    if evaluation is not None:
        # These images have no truth, of which a metric of the user's own may need some.
        reading = evaluation.reading
        return _with_reading(images, reading and (reading.base or reading))
    return _with_reading(images, _choose_reading(images, request))


def make_evaluation_images(
    inputs: BuildInputs, evaluation_set: Images, request: TaskRequest
) -> SearchImages:
    """Return the evaluation images in batches of the model's size."""
    size = fixed_batch(inputs.loaded.source.inputs)

    def read() -> Iterator[LabelledBatch]:
        for number, batch in enumerate(evaluation_set.batches(size or EVALUATION_BATCH)):
            # An incomplete batch is left out, or repeated if it is the only one.
            if not size or not number or len(batch.items) == size:
                feeds = pad_batch(batch.feeds, size) if size else batch.feeds
                yield feeds, batch.items, batch.frames

    images = _make_images(f"evaluation {evaluation_set.digest()[:12]}", inputs, read)
    reading = _choose_reading(images, request, evaluation_set)
    if reading is None:
        images = _with_reading(images, reading)
        scores = np.asarray(images.rows[0][images.score_output])
        evaluation_set.check_classes(scores.shape[1])
    elif reading.classes and evaluation_set.truth_kind:
        evaluation_set.check_classes(reading.classes)
    return _with_reading(images, reading)


def _choose_reading(
    images: SearchImages, request: TaskRequest, evaluation_set: Images | None = None
) -> Reading | None:
    kind = evaluation_set.truth_kind if evaluation_set is not None else None
    classes = len(evaluation_set.classes.names) if evaluation_set is not None else 0
    frames = iter(images.frames)
    for outputs, count in zip(images.outputs, images.sizes, strict=True):
        places = padded_frames(list(islice(frames, count)), images.fixed)
        reading = choose_reading(request, outputs, places, kind, classes or None)
        if reading is None or not reading.is_open:
            break
    return reading


def _with_reading(images: SearchImages, reading: Reading | None) -> SearchImages:
    if reading is None and not images.score_output:
        raise QConvertError(
            "`--budget` needs predictions, and no task reads the outputs of this model",
            hint="name it with `--task` and `--decode`; `qconvert compare` ranks layers by their "
            "error, `--exclude` keeps them in float",
        )
    return replace(images, reading=reading)


def _make_images(
    name: str, inputs: BuildInputs, read: ReadBatches, max_bytes: int = MAX_CACHED_BYTES
) -> SearchImages:
    run = open_cpu(inputs.loaded.model)
    held, outputs, held_bytes = list[Tensors](), list[Tensors](), 0
    counts = list[int]()
    items, frames = list[ImageEntry](), list[Frame]()
    for batch, entries, places in read():
        outputs.append(run(batch))
        counts.append(len(entries))
        items += entries
        frames += places
        held_bytes += sum(array.nbytes for array in batch.values())
        held = [*held, batch] if held_bytes <= max_bytes else []
    if not outputs:
        raise QConvertError("no images to search on", hint="add more: `--images PATH`")
    fixed = fixed_batch(inputs.loaded.source.inputs)
    batches = held or RereadBatches(read)
    return SearchImages(name, batches, outputs, items, frames, counts=counts, fixed=fixed)


def make_timer(
    model: SearchModel, backend: str, rest: RestPrecision, inputs: BuildInputs, context: RunContext
) -> SetTimer:
    """Return what builds engines of sets and times them in turns, at the first batch size."""
    bench, context = context.config.bench, _within_search(context)
    bench = replace(bench, batch_sizes=bench.batch_sizes[:1], seconds=min(1.0, bench.seconds))

    def time_sets(sets: Sequence[BlockSet]) -> SetTimes:
        engines = {"float": _build(EngineVariant(backend, rest), inputs, context)}
        for number, blocks in enumerate(sets, 1):
            if blocks:
                plan = PlanWithWeights(model.restore_float(blocks), model.weights)
                mixed = EngineVariant(backend, "mixed")
                plans = {**inputs.plans, mixed.name: plan}
                engines[f"set {number}"] = _build(mixed, replace(inputs, plans=plans), context)
            else:
                engines["int8"] = _build(EngineVariant(backend, "int8"), inputs, context)
        latencies = time_engines(engines, bench, context)
        samples = [latencies[name][0].samples_ms for name in engines]
        return dict(zip([None, *map(names_of, sets)], samples, strict=True))

    return time_sets


def make_profiler(
    backend: str, rest: RestPrecision, inputs: BuildInputs, context: RunContext
) -> Profiler:
    """Return what times the operators of the INT8 engine and of the float engine; cached."""
    bench, context = context.config.bench, _within_search(context)

    def profile() -> Profiles:
        chosen = {"int8": EngineVariant(backend, "int8"), "float": EngineVariant(backend, rest)}
        engines = {name: _build(variant, inputs, context) for name, variant in chosen.items()}
        return profile_operators(engines, bench, context)

    return profile


def _within_search(context: RunContext) -> RunContext:
    """Return a context whose steps are shown as parts of the search while they run."""

    def report(event: Progress) -> None:
        if event.seconds is None:
            context.progress(replace(event, step="search"))

    return replace(context, progress=report)


def _build(variant: EngineVariant, inputs: BuildInputs, context: RunContext) -> Engine:
    graph = make_graph(variant, inputs, replace(context, progress=ignore_progress))
    return variants.cached_engine(variant, graph, context)[0]


def add_mixed_variants(
    chosen: ChosenVariants, inputs: BuildInputs, evaluation_set: Images | None, context: RunContext
) -> tuple[ChosenVariants, BuildInputs, dict[str, MixedResult]]:
    """Search for every requested mix; return the engines to make, their inputs, and the mixes."""
    if all(variant.precision != "mixed" for variant in chosen.variants):
        return chosen, inputs, {}
    kept, notes, mixes = list[EngineVariant](), list(chosen.notes), dict[str, MixedResult]()
    previous, goal = report_files.previous_report(context.folder), context.config.search
    for variant in chosen.variants:
        backend = variant.backend
        mix = previous.mixes.get(backend) if previous is not None else None
        same_goal = mix is None or _goal_of(mix) == replace(goal, by=goal.by or mix.by)
        if variant.precision != "mixed" or (variant.name in inputs.plans and same_goal):
            kept.append(variant)
            continue
        available = chosen.available[backend]
        trials = context.folder.root / "analysis" / f"{backend}-{TRIALS}"
        mix, plan = search_backend(available, backend, inputs, evaluation_set, context, trials)
        mixes[backend] = mix
        notes += (note for note in mix.notes if note not in notes)
        if plan is None:
            notes.append(f"no `{variant.name}`: {mix.why}")
            # an engine from an earlier search had another goal
            atomic.remove_folder(context.folder.engine(variant.name))
        else:
            notes.append(f"`{variant.name}`: {mix.why}")
            kept.append(variant)
            inputs = replace(inputs, plans={**inputs.plans, variant.name: plan})
    if not kept:
        if previous is not None:  # the report changes only by the removed engines
            names = {variant.name for variant in chosen.variants}
            rows = tuple(row for row in previous.variants if row.name not in names)
            report = replace(previous, variants=rows, mixes={**previous.mixes, **mixes})
            report_files.write_report(conclude(report, context.config.gate), context.folder)
        raise QConvertError(notes[-1], hint="build others: `--precision fp32,int8`")
    return replace(chosen, variants=tuple(kept), notes=tuple(notes)), inputs, mixes


def _goal_of(mix: MixedResult) -> SearchConfig:
    return SearchConfig(mix.budget, mix.by, mix.max_latency, mix.by_latency)


@dataclass(frozen=True)
class SearchSummary:
    """The result of a search for a backend, and the bytes of the FP32, INT8 and mixed graphs."""

    backend: str
    mix: MixedResult
    sizes: Mapping[str, int]
    notes: tuple[str, ...]


def run_search(job: JobContext, out: Path, workers: int | None = None) -> SearchSummary:
    """Search for one backend, and leave the mix, its plan and all trials in a folder."""
    variant, chosen = _choose_backend(job.config.build)
    backend, available = variant.backend, chosen.available[variant.backend]
    with run_folder.begin_run(out, job.config, searching=True) as folder:
        context = RunContext(job.config, job.cache, job.progress, trust=job.trust, folder=folder)
        _, inputs = variants.prepare_inputs(chosen, context, building=available.builds)
        images = open_evaluation_set(inputs.loaded.source, context, workers)
        trials = folder.root / TRIALS
        mix, plan = search_backend(available, backend, inputs, images, context, trials)
        int8 = make_graph(EngineVariant(backend, "int8"), inputs, context)
        sizes = {"fp32": onnx_io.saved_bytes(folder.model), "int8": onnx_io.saved_bytes(int8.path)}
        for name in (MIXED_MODEL, *PLAN_FILES):  # of an earlier search with another goal
            (folder.root / name).unlink(missing_ok=True)
        if plan is not None:
            graph = make_graph(variant, replace(inputs, plans={variant.name: plan}), context)
            atomic.copy_into_place(graph.path, folder.root / MIXED_MODEL)
            for name in PLAN_FILES:
                if (graph.folder / name).is_file():
                    atomic.copy_into_place(graph.folder / name, folder.root / name)
            sizes["mixed"] = onnx_io.saved_bytes(folder.root / MIXED_MODEL)
        atomic.write_text(folder.root / SEARCH_RESULT, json.dumps(asdict(mix), indent=1) + "\n")
        return SearchSummary(backend, mix, sizes, chosen.notes)


def _choose_backend(settings: BuildConfig) -> tuple[EngineVariant, ChosenVariants]:
    chosen = variants.choose_variants(replace(settings, precisions=("mixed",)), plan_only=True)
    if len(chosen.variants) > 1:
        names = ", ".join(f"`{variant.backend}`" for variant in chosen.variants)
        raise UsageError(f"search needs one backend, not {names}", hint="name one of them")
    return chosen.variants[0], chosen


def preview_search(context: JobContext) -> list[str]:
    """Describe what a search would try; no image is read and nothing is written."""
    config = context.config
    variant, chosen = _choose_backend(config.build)
    layers = preview_layers(context, QuantizeRequest(Path("model.onnx"), variant.backend, "int8"))
    weighted = sum(not layer.left and layer.weight is not None for layer in layers.values())
    available = chosen.available[variant.backend]
    has_profile = variant.backend == "cpu" and available.runs and config.search.by_latency
    times = ["times     operators in INT8 and in float, then sets of blocks"] if has_profile else []
    trains, steps = config.quantize.effort == TRAIN, config.quantize.training_steps
    training = [f"train     {steps} steps"] if trains else []
    return [
        f"model     {config.model}",
        f"backend   {variant.backend}: {'runs here' if available.runs else available.reason}",
        f"calibrate {config.calibration.images or 'no images'}",
        *training,
        f"blocks    {min(weighted, MAX_BLOCKS)}, of {weighted} operators with weights in INT8",
        *times,
        f"budget    {config.search.budget:g} points",
        f"confirm   {config.evaluate.images or 'on the images of the search'}",
    ]
