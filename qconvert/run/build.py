"""The main job: engines for every backend and precision, timed, scored, in one report."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from qconvert.backends.base import Engine, EngineVariant
from qconvert.core.atomic import copy_into_place
from qconvert.core.cache import Cache
from qconvert.core.config import Config, GateConfig
from qconvert.core.progress import ProgressCallback
from qconvert.report.model import Report
from qconvert.run import (
    bench_job,
    build_inputs,
    built_engines,
    evaluate_job,
    explain_errors,
    job_images,
    run_folder,
    search_job,
    variants,
)
from qconvert.run.bench_job import measure_footprints
from qconvert.run.job_images import EvaluationSet, open_evaluation_set
from qconvert.run.merge_reports import merge_with_previous
from qconvert.run.report_builder import RunInfo, RunResults, build_report
from qconvert.run.report_files import write_report
from qconvert.run.run_folder import RunContext, RunFolder, require_inputs_exist
from qconvert.run.variant_graphs import VariantGraph, make_graph
from qconvert.run.variants import BuildInputs, ChosenVariants

NO_EVALUATION_IMAGES = "no images to compare answers on: give `--eval PATH`"
PLANNED_ONLY = "only planned: no engine was built"
T = TypeVar("T")


@dataclass(frozen=True)
class BuildRequest:
    """Where a run goes and how far; with `resumed` it starts from what lies there.

    `plan_only` makes graphs and no engines. `command` is what the user typed. As many `workers`
    read images; nothing here changes a number.
    """

    out: Path
    command: str
    resumed: bool = False
    plan_only: bool = False
    trust: bool = False
    workers: int | None = None


@dataclass
class StageTimer:
    """How long each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def measure(self, step: str, work: Callable[[], T]) -> T:
        """Do some work and add its time to a step."""
        started = time.perf_counter()
        try:
            return work()
        finally:
            took = time.perf_counter() - started
            self.seconds[step] = self.seconds.get(step, 0.0) + took


def build(config: Config, order: BuildRequest, store: Cache, tell: ProgressCallback) -> Report:
    """Do everything, leave it in the run's folder, and return the report."""
    clock = StageTimer()
    if order.resumed:
        run_folder.require_same_settings(RunFolder(order.out), config)
    else:
        require_inputs_exist(config)
    chosen = clock.measure(
        "probe", lambda: variants.choose_variants(config.build, plan_only=order.plan_only)
    )
    with _open_folder(config, order) as run:
        return _build(chosen, order, RunContext(config, run, store, tell, order.trust), clock)


@contextmanager
def _open_folder(config: Config, order: BuildRequest) -> Iterator[RunFolder]:
    work = run_folder.resume_run if order.resumed else run_folder.begin_run
    with work(order.out, config) as run:
        yield run


def _build(
    chosen: ChosenVariants, order: BuildRequest, shop: RunContext, clock: StageTimer
) -> Report:
    config, run = shop.config, shop.folder
    base = clock.measure("calibrate", lambda: _load_inputs(chosen, order, shop))
    if order.resumed:
        run_folder.update_settings(run, config)
    exam = open_evaluation_set(base, shop, order.workers, resumed=order.resumed)
    mixed = clock.measure("search", lambda: search_job.add_mixed_variants(chosen, base, exam, shop))
    chosen, base = mixed.chosen, mixed.inputs
    graphs = clock.measure("quantize", lambda: _make_graphs(chosen, base, shop))
    if order.plan_only:
        _copy_graphs(graphs, run)
        found = RunResults(
            graphs, chosen.available, notes=chosen.notes, not_scored_reason=PLANNED_ONLY
        )
    else:
        found = _build_and_measure(clock, chosen, graphs, shop, exam)
        found = _explain_errors(clock, base, found, shop, exam)
        if exam is not None:
            run_folder.write_classes(run, exam.images.classes)
    about = RunInfo(
        config=config,
        run=run,
        command=order.command,
        preprocess=job_images.fitted_preprocessing_or_empty(base.loaded.source, config),
        calibration=base.calibration.full if base.calibration is not None else None,
        evaluation=None if order.plan_only else exam,
        mixes=mixed.mixes,
    )
    # Nothing of what is only planned was measured, so no limit is failed by it.
    limits = GateConfig() if order.plan_only else config.gate
    report = merge_with_previous(build_report(about, found, limits), run, config.gate)
    write_report(report, run)
    return report


def _load_inputs(chosen: ChosenVariants, order: BuildRequest, shop: RunContext) -> BuildInputs:
    if order.resumed:
        return build_inputs.reload_inputs(chosen.variants, shop)
    return build_inputs.prepare_inputs(chosen.variants, shop, building=not order.plan_only)


def _make_graphs(
    chosen: ChosenVariants, base: BuildInputs, shop: RunContext
) -> dict[EngineVariant, VariantGraph]:
    """Return the graph of each variant; a plan that lies in the run is followed."""
    return {each: make_graph(each, base, shop.cache, shop.progress) for each in chosen.variants}


def _copy_graphs(graphs: Mapping[EngineVariant, VariantGraph], run: RunFolder) -> None:
    for variant, graph in graphs.items():
        if not (run.engine(variant.name) / run_folder.ENGINE_FILE).is_file():
            copy_into_place(graph.folder, run.engine(variant.name))


def _build_and_measure(
    clock: StageTimer,
    chosen: ChosenVariants,
    graphs: Mapping[EngineVariant, VariantGraph],
    shop: RunContext,
    exam: EvaluationSet | None,
) -> RunResults:
    """Build the engines, and measure what can be measured here."""
    config, store, tell = shop.config, shop.cache, shop.progress
    built = clock.measure(
        "build",
        lambda: {v.name: built_engines.build_engine(v, graph, shop) for v, graph in graphs.items()},
    )
    all_engines = {name: each.engine for name, each in built.items()}
    here = {v.name: chosen.available[v.backend].runs for v in graphs}
    running: dict[str, Engine] = {name: each for name, each in all_engines.items() if here[name]}
    timed = clock.measure(
        "bench", lambda: bench_job.time_engines(running, config.bench, store, tell)
    )
    prints = clock.measure("inspect", lambda: measure_footprints(running, store, tell))
    scores = {}
    if exam is not None:
        scores = clock.measure(
            "evaluate", lambda: evaluate_job.score_engines(all_engines, here, exam, (store, tell))
        )
    return RunResults(
        graphs=graphs,
        availability=chosen.available,
        built=built,
        latencies=timed,
        scores=scores,
        coverage={name: each.coverage for name, each in prints.items()},
        memory={name: each.peak for name, each in prints.items()},
        seconds=clock.seconds,
        notes=chosen.notes,
        not_scored_reason="" if exam is not None else _why_not_evaluated(config),
    )


def _explain_errors(
    clock: StageTimer,
    base: BuildInputs,
    found: RunResults,
    shop: RunContext,
    exam: EvaluationSet | None,
) -> RunResults:
    """Return the findings with what shows where errors come from."""
    graphs = found.graphs
    analysis = clock.measure("compare", lambda: explain_errors.analyze_errors(graphs, base, shop))
    evidence = clock.measure(
        "compare", lambda: explain_errors.collect_evidence(graphs, base, analysis, shop)
    )
    if exam is not None:
        evidence = explain_errors.add_changed_images(evidence, exam, found.scores, shop.folder)
    return replace(found, analysis=analysis, evidence=evidence)


def _why_not_evaluated(config: Config) -> str:
    path = config.evaluate.images
    return NO_EVALUATION_IMAGES if path is None else f"`{path}` is not here: give `--eval PATH`"
