"""The images of a search, with what FP32 answers and the labels that are known."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydantic

from qconvert import __version__, backends
from qconvert.backends.base import Availability, EngineVariant
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core import atomic, onnx_io
from qconvert.core.atomic import copy_into_place, write_text
from qconvert.core.config import BuildConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ProgressCallback, ignore_progress
from qconvert.core.tensors import Tensors, batch_size, fixed_batch, pad_batch, unpad_batch
from qconvert.images.labels import check_classes
from qconvert.measure.machine import describe_machine
from qconvert.measure.mixed_result import MixedResult
from qconvert.measure.stats import summarize_latency
from qconvert.optimize.blocks import MAX_BLOCKS, find_blocks
from qconvert.optimize.mixed_precision import (
    BlockSet,
    SearchGoal,
    SearchImages,
    SearchSpace,
    SetTimer,
    search_mixed_precision,
)
from qconvert.optimize.sensitivity import SearchModel, cache_batches
from qconvert.optimize.trials import ReferenceOutputs, open_trials
from qconvert.quantize import plan_files
from qconvert.quantize.plan_files import PlanWithWeights, weights_path
from qconvert.report.verdict import conclude
from qconvert.run import (
    bench_job,
    build_inputs,
    built_engines,
    merge_reports,
    report_files,
    run_folder,
    variants,
)
from qconvert.run.context import JobContext, RunContext
from qconvert.run.job_images import EVALUATION_BATCH, EvaluationSet, open_evaluation_set
from qconvert.run.quantize import QuantizeRequest
from qconvert.run.quantize import preview_layers as quantized_layers
from qconvert.run.quantize_model import scheme_for
from qconvert.run.run_folder import PLAN_FILE, SEARCH_RESULT, RunFolder
from qconvert.run.variant_graphs import BuildInputs, engine_settings, make_graph
from qconvert.run.variants import ChosenVariants

NO_CLASSIFICATION_OUTPUT = "a budget is of answers, and no output of this model is a row of scores"

# Batches as the model takes them, with a label or None for each image that is no repetition.
LabelledBatch = tuple[Tensors, Sequence[int | None]]
LabelledBatches = Callable[[], Iterator[LabelledBatch]]


def make_search_images(base: BuildInputs) -> SearchImages:
    """Return the calibration images that are held out for choices; they have no labels."""
    found = base.calibration
    if found is None or not found.images_available:
        raise UsageError(
            "a search needs images to try blocks on", hint="give pictures: `--images PATH`"
        )

    def batches() -> Iterator[LabelledBatch]:
        left = found.validation_count
        for feeds in found.validation_batches():
            count = min(batch_size(feeds), left)
            left -= count
            yield feeds, [None] * count

    return _make_images("search", base, batches)


def make_evaluation_images(base: BuildInputs, exam: EvaluationSet) -> SearchImages:
    """Return all images for evaluation, in batches that the model takes.

    Where the model fixes the batch, images that do not make a whole one are left out; fewer than
    one are repeated.
    """
    size = fixed_batch(base.loaded.source.inputs)

    def batches() -> Iterator[LabelledBatch]:
        for number, batch in enumerate(exam.images.batches(size or EVALUATION_BATCH)):
            if not size or not number or len(batch.items) == size:
                feeds = pad_batch(batch.feeds, size) if size else batch.feeds
                # Pictures that cannot be read are no items, and their labels nobody's.
                yield feeds, [item.label for item in batch.items]

    sample = _make_images(f"evaluation {exam.digest()[:12]}", base, batches)
    scores = np.asarray(sample.reference.outputs[0][sample.reference.score_output])
    check_classes(exam.images, scores.shape[1])
    return sample


def _make_images(name: str, base: BuildInputs, batches: LabelledBatches) -> SearchImages:
    kept, run = cache_batches(batches), open_cpu(base.loaded.model)
    answers, labels = list[Tensors](), list[int | None]()
    for feeds, known in kept():
        answers.append(unpad_batch(run(feeds), len(known), batch_size(feeds)))
        labels += known
    if not answers:
        raise QConvertError("there is no image to search on", hint="give more: `--images PATH`")
    wanted = ReferenceOutputs(answers, labels)
    if not wanted.score_output:
        raise QConvertError(
            NO_CLASSIFICATION_OUTPUT,
            hint="`qconvert compare` names layers that err, `--exclude` leaves them out",
        )
    return SearchImages(name, lambda: (feeds for feeds, _ in kept()), wanted)


MAX_TIMING_SECONDS = 1.0
FLOAT_ENGINE, INT8_ENGINE = "float", "int8"


def make_timer(subject: SearchModel, backend: str, base: BuildInputs, shop: RunContext) -> SetTimer:
    """Return what builds and times engines of lifted sets in turns, at the first batch size."""
    rest = shop.config.quantize.rest or backends.requirements(backend).default_rest
    quiet = replace(shop, progress=_hide_finished_steps(shop.progress))
    sizes, seconds = shop.config.bench.batch_sizes[:1], shop.config.bench.seconds
    bench = replace(shop.config.bench, batch_sizes=sizes, seconds=min(MAX_TIMING_SECONDS, seconds))

    def engine(variant: EngineVariant, basis: BuildInputs) -> built_engines.BuiltEngine:
        graph = make_graph(variant, basis, replace(shop, progress=ignore_progress))
        return built_engines.read_engine(built_engines.cached_engine(variant, graph, quiet).path)

    def clock(sets: Sequence[BlockSet]) -> dict[tuple[str, ...] | None, float]:
        made = {FLOAT_ENGINE: engine(EngineVariant(backend, rest), base)}
        names: dict[str, tuple[str, ...] | None] = {FLOAT_ENGINE: None}
        for number, each in enumerate(sets, 1):
            variant = EngineVariant(backend, "mixed" if each else "int8")
            plan = (
                {variant.name: PlanWithWeights(subject.restore_float(each), subject.weights)}
                if each
                else {}
            )
            name = f"set {number}" if each else INT8_ENGINE
            made[name] = engine(variant, replace(base, plans={**base.plans, **plan}))
            names[name] = tuple(block.name for block in each)
        found = bench_job.time_engines(
            {name: each.engine for name, each in made.items()}, bench, quiet
        )
        return {names[name]: summarize_latency(each[0]).median_ms for name, each in found.items()}

    return clock


def _hide_finished_steps(tell: ProgressCallback) -> ProgressCallback:
    """Say what is at work, and not what ended: to the user it is all one search."""

    def heard(progress: Progress) -> None:
        if progress.seconds is None:
            tell(replace(progress, step="search"))

    return heard


SEARCH_STEP = "search"
MIX_FILE, CACHED_TRIALS = "mix.json", "trials.jsonl"
SAME_IMAGES = "no `--eval`: what was found is confirmed on the images that it was found on"
MIN_SEARCH_IMAGES = 32
FEW_SEARCH_IMAGES = (
    "blocks were tried on {} images only: give more with `--images`, a fifth of them is held out "
    "for this"
)

MIX_ADAPTER = pydantic.TypeAdapter(MixedResult)


@dataclass(frozen=True)
class SearchTask:
    """For which backend to search, from what, confirmed on which images."""

    backend: str
    inputs: BuildInputs
    evaluation_set: EvaluationSet | None
    available: Availability


@dataclass(frozen=True)
class SearchResult:
    """What a search found; `planned` is the mix with its weights, None where there is none."""

    mix: MixedResult
    planned: PlanWithWeights | None


def search_backend(task: SearchTask, shop: RunContext, trials: Path) -> SearchResult:
    """Search, or go on where a killed search was; each trial is a line in the file `trials`."""
    started = time.perf_counter()
    graph = make_graph(EngineVariant(task.backend, "int8"), task.inputs, shop)
    plain = plan_files.load_plan(graph.folder / PLAN_FILE)
    scheme = scheme_for(shop.config.quantize, backends.requirements(task.backend))
    subject = SearchModel(task.inputs.loaded.model, plain.plan, scheme, plain.weights)

    def make(folder: Path) -> None:
        mix = _run_search(task, subject, shop, trials)
        (folder / MIX_FILE).write_text(json.dumps(asdict(mix), indent=1), encoding="utf-8")
        if mix.outcome == "mixed" and mix.chosen is not None:
            every = find_blocks(subject.model, subject.plan)
            lifted = [each for each in every if each.name in mix.chosen.lifted]
            plan_files.save_plan(
                PlanWithWeights(subject.restore_float(lifted), subject.weights), folder / PLAN_FILE
            )
        shutil.copyfile(trials, folder / CACHED_TRIALS)

    kept = shop.cache.get_or_make(SEARCH_STEP, _search_key(task, subject, shop), make)
    if kept.hit:
        trials.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept.path / CACHED_TRIALS, trials)
    mix = MIX_ADAPTER.validate_python(
        json.loads((kept.path / MIX_FILE).read_text(encoding="utf-8"))
    )
    planned = (
        plan_files.load_plan(kept.path / PLAN_FILE) if (kept.path / PLAN_FILE).is_file() else None
    )
    shop.progress(Progress(SEARCH_STEP, mix.why, time.perf_counter() - started, kept.hit))
    return SearchResult(mix, planned)


def _run_search(
    task: SearchTask, subject: SearchModel, shop: RunContext, trials: Path
) -> MixedResult:
    shop.progress(Progress(SEARCH_STEP, "what FP32 answers"))
    sample = make_search_images(task.inputs)
    exam = (
        make_evaluation_images(task.inputs, task.evaluation_set)
        if task.evaluation_set is not None
        else sample
    )
    runs = task.available.runs
    if shop.cache.fresh:
        trials.unlink(missing_ok=True)
    quest = SearchSpace(
        model=subject,
        blocks=find_blocks(subject.model, subject.plan),
        search_images=sample,
        evaluation_images=exam,
        trials=open_trials(trials, _model_key(task, subject)),
        timer=make_timer(subject, task.backend, task.inputs, shop) if runs else None,
        untimed="" if runs else task.available.reason,
    )
    chosen, wants = shop.config.search, backends.requirements(task.backend)
    rest = shop.config.quantize.rest or wants.default_rest
    goal = SearchGoal(chosen.budget, chosen.by, rest, chosen.max_latency)

    def say(text: str, done: int, total: int) -> None:
        shop.progress(Progress(SEARCH_STEP, text, done=done, total=total))

    notes = [SAME_IMAGES] if task.evaluation_set is None else []
    images = len(sample.reference.labels)
    notes += [FEW_SEARCH_IMAGES.format(images)] if images < MIN_SEARCH_IMAGES else []
    return replace(search_mixed_precision(quest, goal, say), notes=tuple(notes))


def _model_key(task: SearchTask, subject: SearchModel) -> str:
    """Return what decides every trial, as a hash; what is asked of it is in a trial's own name."""
    decided = [
        onnx_io.fingerprint(subject.model),
        plan_files.format_plan(subject.plan),
        task.inputs.calibration.full.origin.fingerprint
        if task.inputs.calibration is not None
        else "",
        __version__,
        ORT_VERSION,
        version("numpy"),
    ]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


def _search_key(task: SearchTask, subject: SearchModel, shop: RunContext) -> dict[str, str]:
    exam, runs = task.evaluation_set, task.available.runs
    # How engines are built decides how long they take, which is a part of what is found.
    built = [engine_settings(shop, task.backend), shop.config.build.profile]
    return {
        "name": f"{task.backend} {shop.config.search.budget:g}",
        "model": onnx_io.fingerprint(subject.model),
        "subject": _model_key(task, subject),
        "settings": json.dumps(asdict(shop.config.search), sort_keys=True),
        "exam": exam.digest() if exam is not None else "",
        "bench": json.dumps(asdict(shop.config.bench), sort_keys=True),
        "engines": json.dumps(built, sort_keys=True) if runs else "",
        "machine": json.dumps(describe_machine(), sort_keys=True) if runs else "",
    }


MIXED_MODEL, TRIALS = "mixed.onnx", "trials.jsonl"
PLAN_FILES = (PLAN_FILE, weights_path(Path(PLAN_FILE)).name)


@dataclass(frozen=True)
class VariantsWithMixes:
    """The engines to make and their basis, which has the plans of the mixes that were found."""

    chosen: ChosenVariants
    inputs: BuildInputs
    mixes: Mapping[str, MixedResult] = field(default_factory=dict)


def add_mixed_variants(
    chosen: ChosenVariants, base: BuildInputs, exam: EvaluationSet | None, shop: RunContext
) -> VariantsWithMixes:
    """Search for every mix asked for; one that there is not is left out, with the reason."""
    kept: list[EngineVariant] = []
    notes = list(chosen.notes)
    mixes: dict[str, MixedResult] = {}
    gone: list[EngineVariant] = []
    for variant in chosen.variants:
        if variant.precision != "mixed" or _is_already_searched(variant, base, shop):
            kept.append(variant)
            continue
        task = SearchTask(variant.backend, base, exam, chosen.available[variant.backend])
        found = search_backend(
            task, shop, shop.folder.root / "analysis" / f"{variant.backend}-{TRIALS}"
        )
        mixes[variant.backend] = found.mix
        notes += (note for note in found.mix.notes if note not in notes)
        if found.planned is None:
            notes.append(f"no `{variant.name}`: {found.mix.why}")
            gone.append(variant)
        else:
            kept.append(variant)
            base = replace(base, plans={**base.plans, variant.name: found.planned})
    for variant in gone:  # of an earlier search, which did not ask the same
        atomic.remove_folder(shop.folder.engine(variant.name))
    if not kept:
        _drop_from_report({each.name for each in gone}, mixes, shop)
        raise QConvertError(notes[-1], hint="build others: `--precision fp32,int8`")
    return VariantsWithMixes(replace(chosen, variants=tuple(kept), notes=tuple(notes)), base, mixes)


def _drop_from_report(
    gone: Collection[str], mixes: Mapping[str, MixedResult], shop: RunContext
) -> None:
    """Leave engines out of the report of a run that has nothing new to report."""
    before = merge_reports.previous_report(shop.folder)
    if before is not None:
        rows = tuple(each for each in before.variants if each.name not in gone)
        known = replace(before, variants=rows, mixes={**before.mixes, **mixes})
        report_files.write_report(conclude(known, shop.config.gate), shop.folder)


def _is_already_searched(variant: EngineVariant, base: BuildInputs, shop: RunContext) -> bool:
    """Whether the run has the mix already, found by a search that asked the same."""
    if variant.name not in base.plans:
        return False
    report, asked = merge_reports.previous_report(shop.folder), shop.config.search
    mix = report.mixes.get(variant.backend) if report is not None else None
    if mix is None:  # there is nothing that says what was asked
        return True
    same = (mix.budget, mix.max_latency) == (asked.budget, asked.max_latency)
    return same and asked.by in (None, mix.by)


@dataclass(frozen=True)
class SearchFolder:
    """Where a search goes; nothing here changes a number."""

    out: Path
    workers: int | None = None


@dataclass(frozen=True)
class SearchSummary:
    """What a search found for a backend, and the bytes of the graphs: FP32, INT8 and the mix."""

    backend: str
    mix: MixedResult
    sizes: Mapping[str, int]
    notes: tuple[str, ...]


def run_search(context: JobContext, job: SearchFolder) -> SearchSummary:
    """Search for one backend, and leave the mix, its plan and all trials in a folder."""
    config = context.config
    variant, said = _choose_backend(config.build)
    with run_folder.begin_run(job.out, config, searching=True) as run:
        shop = RunContext(config, context.cache, context.progress, trust=context.trust, folder=run)
        base = build_inputs.prepare_inputs(
            [variant], shop, building=said.available[variant.backend].builds
        )
        exam = open_evaluation_set(base.loaded.source, shop, job.workers)
        task = SearchTask(variant.backend, base, exam, said.available[variant.backend])
        found = search_backend(task, shop, run.root / TRIALS)
        sizes = {"fp32": _model_bytes(run.model)}
        sizes["int8"] = _model_bytes(
            make_graph(replace(variant, precision="int8"), base, shop).path
        )
        if found.planned is not None:
            with_plan = replace(base, plans={variant.name: found.planned})
            graph = make_graph(variant, with_plan, shop)
            copy_into_place(graph.path, run.root / MIXED_MODEL)
            for name in PLAN_FILES:
                (run.root / name).unlink(missing_ok=True)
                if (graph.folder / name).is_file():
                    copy_into_place(graph.folder / name, run.root / name)
            sizes["mixed"] = _model_bytes(run.root / MIXED_MODEL)
        else:
            _delete_mixed(run)
        write_text(run.root / SEARCH_RESULT, json.dumps(asdict(found.mix), indent=1) + "\n")
        return SearchSummary(variant.backend, found.mix, sizes, said.notes)


def _choose_backend(settings: BuildConfig) -> tuple[EngineVariant, ChosenVariants]:
    """Return the one backend that is searched for."""
    only = replace(settings, precisions=("mixed",))
    said = variants.choose_variants(only, plan_only=True)
    if len(said.variants) > 1:
        names = ", ".join(f"`{each.backend}`" for each in said.variants)
        raise UsageError(f"a search is for one backend, not for {names}", hint="name one of them")
    return said.variants[0], said


def _delete_mixed(run: RunFolder) -> None:
    """Delete the mix of an earlier search, which did not ask the same."""
    for name in (MIXED_MODEL, *PLAN_FILES):
        (run.root / name).unlink(missing_ok=True)


def _model_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in onnx_io.model_files(path))


def preview_search(context: JobContext) -> list[str]:
    """Return what a search would try, without an image; nothing is kept."""
    config = context.config
    variant, said = _choose_backend(config.build)
    request = QuantizeRequest(Path("model.onnx"), variant.backend, "int8")
    layers = quantized_layers(context, request)
    weighted = sum(not layer.left and layer.weight is not None for layer in layers.values())
    there = said.available[variant.backend]
    return [
        f"model     {config.model}",
        f"backend   {variant.backend}: {'runs here' if there.runs else there.reason}",
        f"calibrate {config.calibration.images or 'no images'}",
        f"blocks    {min(weighted, MAX_BLOCKS)}, of {weighted} operators with weights in INT8",
        f"budget    {config.search.budget:g} points",
        f"confirm   {config.evaluate.images or 'on the images of the search'}",
    ]
