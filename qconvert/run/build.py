"""The job `build`: load -> calibrate -> plan -> build -> measure -> report, for every variant."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from qconvert.backends.base import EngineVariant
from qconvert.core.atomic import copy_into_place
from qconvert.core.config import GateConfig
from qconvert.report.model import Report
from qconvert.run import run_folder
from qconvert.run.bench import measure_footprints, time_engines
from qconvert.run.build_inputs import prepare_inputs, reload_inputs
from qconvert.run.built_engines import build_engine
from qconvert.run.context import (
    EvaluationSet,
    JobContext,
    RunContext,
    fitted_preprocessing_or_empty,
    open_evaluation_set,
)
from qconvert.run.evaluate import score_engines
from qconvert.run.explain_errors import add_changed_images, analyze_errors
from qconvert.run.report_builder import RunResults, build_report
from qconvert.run.report_files import merge_with_previous, write_report
from qconvert.run.run_folder import ENGINE_FILE, RunFolder
from qconvert.run.search import add_mixed_variants
from qconvert.run.variant_graphs import BuildInputs, VariantGraph, make_graph
from qconvert.run.variants import ChosenVariants, choose_variants

NO_EVALUATION_IMAGES = "no images to compare outputs on: give `--eval PATH`"
PLANNED_ONLY = "only planned: no engine was built"


@dataclass(frozen=True)
class BuildRequest:
    """Where a run goes, and how far; if `resumed`, it starts from what the folder holds.

    With `plan_only` graphs are made and no engines. `command` is what the user typed. As many
    `workers` read the evaluation images; nothing here changes a number.
    """

    out: Path
    command: str
    resumed: bool = False
    plan_only: bool = False
    workers: int | None = None


@dataclass
class StageTimer:
    """The seconds that each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def build(context: JobContext, request: BuildRequest) -> Report:
    """Build all engines, measure them, write everything into the run, and return the report."""
    config, timer = context.config, StageTimer()
    if request.resumed:
        run_folder.require_same_settings(RunFolder(request.out), config)
        open_folder = run_folder.resume_run(request.out, config)
    else:
        run_folder.require_inputs_exist(config)
        open_folder = run_folder.begin_run(request.out, config)
    with timer.measure("probe"):
        chosen = choose_variants(config.build, plan_only=request.plan_only)
    with open_folder as folder:
        return _build(chosen, request, context.in_run(folder), timer)


def _build(
    chosen: ChosenVariants, request: BuildRequest, context: RunContext, timer: StageTimer
) -> Report:
    config, folder = context.config, context.folder
    with timer.measure("calibrate"):
        if request.resumed:
            inputs = reload_inputs(chosen.variants, context)
            run_folder.update_settings(folder, config)
        else:
            inputs = prepare_inputs(chosen.variants, context, building=not request.plan_only)
    images = _open_evaluation_set(inputs, context, request)
    with timer.measure("search"):
        with_mixes = add_mixed_variants(chosen, inputs, images, context)
    chosen, inputs = with_mixes.chosen, with_mixes.inputs
    with timer.measure("quantize"):
        graphs = {variant: make_graph(variant, inputs, context) for variant in chosen.variants}
    if request.plan_only:
        _copy_graphs(graphs, folder)
        results = RunResults(
            graphs, chosen.available, notes=chosen.notes, not_scored_reason=PLANNED_ONLY
        )
        # Nothing was measured, so no limit can fail.
        images, limits = None, GateConfig()
    else:
        results = _build_and_measure(chosen, graphs, images, context, timer)
        results = _explain_errors(results, inputs, images, context, timer)
        limits = config.gate
    results = replace(
        results,
        calibration=inputs.calibration.full if inputs.calibration is not None else None,
        evaluation=images,
        mixes=with_mixes.mixes,
    )
    preprocess = fitted_preprocessing_or_empty(inputs.loaded.source, config.preprocess)
    report = build_report(results, context, request.command, preprocess, limits)
    report = merge_with_previous(report, folder, config.gate)
    write_report(report, folder)
    return report


def _open_evaluation_set(
    inputs: BuildInputs, context: RunContext, request: BuildRequest
) -> EvaluationSet | None:
    """Open the evaluation images; a run resumed on another machine does without them."""
    path = context.config.evaluate.images
    if request.resumed and path is not None and not path.exists():
        return None
    return open_evaluation_set(inputs.loaded.source, context, request.workers)


def _copy_graphs(graphs: Mapping[EngineVariant, VariantGraph], folder: RunFolder) -> None:
    for variant, graph in graphs.items():
        if not (folder.engine(variant.name) / ENGINE_FILE).is_file():
            copy_into_place(graph.folder, folder.engine(variant.name))


def _build_and_measure(
    chosen: ChosenVariants,
    graphs: Mapping[EngineVariant, VariantGraph],
    images: EvaluationSet | None,
    context: RunContext,
    timer: StageTimer,
) -> RunResults:
    """Build the engines, and measure those that run here."""
    config = context.config
    with timer.measure("build"):
        built = {
            variant.name: build_engine(variant, graph, context) for variant, graph in graphs.items()
        }
    engines = {name: row.engine for name, row in built.items()}
    runs_here = {variant.name: chosen.available[variant.backend].runs for variant in graphs}
    running = {name: engine for name, engine in engines.items() if runs_here[name]}
    with timer.measure("bench"):
        latencies = time_engines(running, config.bench, context)
    with timer.measure("inspect"):
        footprints = measure_footprints(running, context)
    scores, reason = {}, ""
    if images is not None:
        model = context.folder.model
        with timer.measure("evaluate"):
            scores = score_engines(engines, runs_here, model, images, context)
        context.folder.write_classes(images.images.classes)
    elif config.evaluate.images is None:
        reason = NO_EVALUATION_IMAGES
    else:
        reason = f"`{config.evaluate.images}` does not exist here: give `--eval PATH`"
    return RunResults(
        graphs=graphs,
        availability=chosen.available,
        built=built,
        latencies=latencies,
        scores=scores,
        footprints=footprints,
        seconds=timer.seconds,
        notes=chosen.notes,
        not_scored_reason=reason,
    )


def _explain_errors(
    results: RunResults,
    inputs: BuildInputs,
    images: EvaluationSet | None,
    context: RunContext,
    timer: StageTimer,
) -> RunResults:
    """Add what shows where the errors of the engines come from."""
    with timer.measure("compare"):
        analysis, evidence = analyze_errors(results.graphs, inputs, context)
    if images is not None:
        evidence = add_changed_images(evidence, images, results.scores, context.folder)
    return replace(results, analysis=analysis, evidence=evidence)
