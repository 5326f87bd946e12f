"""The job `build`: load -> calibrate -> plan -> build -> measure -> report, for every variant."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qconvert.core.atomic import copy_into_place
from qconvert.core.config import GateConfig
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from qconvert.run import run_folder, variants
from qconvert.run.bench import measure_footprints, time_engines
from qconvert.run.compare import add_changed_images, analyze_errors
from qconvert.run.context import JobContext, RunContext, fitted_preprocessing, open_evaluation_set
from qconvert.run.evaluate import measure_chain, score_engines
from qconvert.run.prediction_runs import PredictionRuns
from qconvert.run.report_files import (
    RunResults,
    build_report,
    merge_with_previous,
    previous_report,
    write_report,
)
from qconvert.run.run_folder import ENGINE_FILE
from qconvert.run.search import add_mixed_variants
from qconvert.run.tune import TuneRequest, describe_changes, tune_plans
from qconvert.run.variants import BuildInputs


def build(
    job: JobContext,
    out: Path,
    command: str,
    *,
    resumed: bool = False,
    plan_only: bool = False,
    workers: int | None = None,
    tuning: TuneRequest | None = None,
) -> Report:
    """Build and measure all engines, write everything to the run folder, and return the report.

    `command` is what the user typed; with `plan_only` the graphs are made, but no engines. With
    `tuning` the plans of a resumed run are trained before.
    """
    config, seconds = job.config, dict[str, float]()
    if not resumed:
        run_folder.require_inputs_exist(config)
    open_folder = run_folder.resume_run if resumed else run_folder.begin_run
    with _timed(seconds, "probe"):
        chosen = variants.choose_variants(config.build, plan_only=plan_only)
    with open_folder(out, config) as folder:
        context = RunContext(job.config, job.cache, job.progress, trust=job.trust, folder=folder)
        with _timed(seconds, "calibrate"):
            if resumed:
                chosen, inputs = variants.reload_inputs(chosen, context)
                run_folder.update_settings(folder, config)
            else:
                chosen, inputs = variants.prepare_inputs(chosen, context, building=not plan_only)
        source, images = inputs.loaded.source, config.evaluate.images
        # A run resumed on another machine does not need the evaluation images.
        is_missing = resumed and images is not None and not images.exists()
        evaluation = None if is_missing else open_evaluation_set(source, context, workers)
        before = previous_report(folder)
        if tuning is not None:
            with _timed(seconds, "train"):
                inputs = tune_plans(chosen.variants, inputs, tuning, evaluation, context)
        with _timed(seconds, "search"):
            chosen, inputs, mixes = add_mixed_variants(chosen, inputs, evaluation, context)
        with _timed(seconds, "quantize"):
            graphs = {row: variants.make_graph(row, inputs, context) for row in chosen.variants}
        calibration = inputs.calibration.full if inputs.calibration is not None else None
        results = RunResults(chosen, graphs, calibration, mixes=mixes)
        if plan_only:
            results = _copy_graphs(results, context)
        else:
            results = replace(results, evaluation=evaluation, seconds=seconds)
            results = _build_and_measure(results, inputs, context, seconds)
        preprocess = fitted_preprocessing(source, config.preprocess)
        report = build_report(results, context, command, preprocess)
        changes = describe_changes(before, report, inputs.trained)
        report = replace(report, run_notes=(*report.run_notes, *changes))
        report = merge_with_previous(report, folder)
        # Where nothing was measured, no limit can fail.
        only_planned = any(variant.engine is None for variant in report.variants)
        report = conclude(report, GateConfig() if only_planned else config.gate)
        write_report(report, folder)
        return report


def _copy_graphs(results: RunResults, context: RunContext) -> RunResults:
    """Copy the graphs into the run, and not over those of engines that are built."""
    for variant, graph in results.graphs.items():
        target = context.folder.engine(variant.name)
        if not (target / ENGINE_FILE).is_file():
            copy_into_place(graph.folder, target)
    return replace(results, not_scored_reason="only planned: no engine was built")


def _build_and_measure(
    results: RunResults, inputs: BuildInputs, context: RunContext, seconds: dict[str, float]
) -> RunResults:
    """Build the engines, measure those that run here, and find where their errors come from."""
    config, folder, graphs = context.config, context.folder, results.graphs
    available, evaluation = results.chosen.available, results.evaluation
    with _timed(seconds, "build"):
        built = {
            variant.name: variants.build_engine(variant, graph, context)
            for variant, graph in graphs.items()
        }
    engines = {name: engine for name, (engine, _) in built.items()}
    runs_here = {variant.name: available[variant.backend].runs for variant in graphs}
    running = {name: engine for name, engine in engines.items() if runs_here[name]}
    with _timed(seconds, "bench"):
        latencies = time_engines(running, config.bench, context)
    with _timed(seconds, "inspect"):
        footprints = measure_footprints(running, context)
    scores, reason, chain = {}, "", None
    runs = PredictionRuns(folder.model, engines, runs_here)
    if evaluation is not None:
        with _timed(seconds, "evaluate"):
            scored = score_engines(runs, evaluation, context)
            chain = measure_chain(runs, evaluation, context)
        scores = scored.scores
        folder.write_classes(evaluation.classes)
        folder.write_head(scored.head)
    elif config.evaluate.images is None:
        reason = "no images to compare outputs on: give `--eval PATH`"
    else:
        reason = f"`{config.evaluate.images}` does not exist here: give `--eval PATH`"
    with _timed(seconds, "compare"):
        layers, evidence = analyze_errors(graphs, inputs, context)
    if evaluation is not None:
        evidence = add_changed_images(evidence, evaluation, scores, runs, context)
    return replace(
        results,
        built=built,
        latencies=latencies,
        scores=scores,
        footprints=footprints,
        chain=chain,
        layers=layers,
        evidence=evidence,
        not_scored_reason=reason,
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
