"""The main job: engines for every backend and precision, timed, scored, in one report."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from qconvert.backends.base import Engine
from qconvert.config import Config, Gate
from qconvert.pipeline import (
    analysing,
    basis,
    engines,
    mixing,
    pictures,
    run_folder,
    scoring,
    showing,
    timing,
    variants,
)
from qconvert.pipeline.assembling import About, Findings, assemble
from qconvert.pipeline.exams import exam_of
from qconvert.pipeline.footprint import footprints
from qconvert.pipeline.graphs import Basis, Graph, graph_of
from qconvert.pipeline.joining import joined
from qconvert.pipeline.place import require_there
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.run_folder import RunFolder, put_copy
from qconvert.pipeline.scoring import Exam
from qconvert.pipeline.targets import put_all
from qconvert.pipeline.variants import Chosen, Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.report.model import Report
from qconvert.store import Store

UNSCORED = "no images to compare answers on: give `--eval PATH`"
PLANNED = "only planned: no engine was built"
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
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
class Clock:
    """How long each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, work: Callable[[], T]) -> T:
        """Do some work and add its time to a step."""
        started = time.perf_counter()
        try:
            return work()
        finally:
            took = time.perf_counter() - started
            self.seconds[step] = self.seconds.get(step, 0.0) + took


def build(config: Config, order: Order, store: Store, tell: Tell) -> Report:
    """Do everything, leave it in the run's folder, and return the report."""
    clock = Clock()
    if order.resumed:
        run_folder.require_same(RunFolder(order.out), config)
    else:
        require_there(config)
    chosen = clock.timed("probe", lambda: variants.choose(config.build, plan_only=order.plan_only))
    with _folder(config, order) as run:
        return _build(chosen, order, Workshop(config, run, store, tell, order.trust), clock)


@contextmanager
def _folder(config: Config, order: Order) -> Iterator[RunFolder]:
    work = run_folder.resumed if order.resumed else run_folder.begun
    with work(order.out, config) as run:
        yield run


def _build(chosen: Chosen, order: Order, shop: Workshop, clock: Clock) -> Report:
    config, run = shop.config, shop.run
    base = clock.timed("calibrate", lambda: _basis(chosen, order, shop))
    if order.resumed:
        run_folder.settle(run, config)
    exam = exam_of(base, shop, order.workers, resumed=order.resumed)
    mixed = clock.timed("search", lambda: mixing.with_mixes(chosen, base, exam, shop))
    chosen, base = mixed.chosen, mixed.basis
    graphs = clock.timed("quantize", lambda: _graphs(chosen, base, shop))
    if order.plan_only:
        _keep_graphs(graphs, run)
        found = Findings(graphs, chosen.available, notes=chosen.notes, unscored=PLANNED)
    else:
        found = _work(clock, chosen, graphs, shop, exam)
        found = _explained(clock, base, found, shop, exam)
        if exam is not None:
            run_folder.keep_classes(run, exam.images.classes)
    about = About(
        config=config,
        run=run,
        command=order.command,
        preprocess=pictures.settled_or_none(base.ready.source, config),
        calibration=base.found.whole if base.found is not None else None,
        evaluation=None if order.plan_only else exam,
        mixes=mixed.mixes,
    )
    # Nothing of what is only planned was measured, so no limit is failed by it.
    limits = Gate() if order.plan_only else config.gate
    report = joined(assemble(about, found, limits), run, config.gate)
    put_all(report, run)
    return report


def _basis(chosen: Chosen, order: Order, shop: Workshop) -> Basis:
    if order.resumed:
        return basis.again(chosen.variants, shop)
    return basis.make(chosen.variants, shop, building=not order.plan_only)


def _graphs(chosen: Chosen, base: Basis, shop: Workshop) -> dict[Variant, Graph]:
    """Return the graph of each variant; a plan that lies in the run is followed."""
    return {each: graph_of(each, base, shop.store, shop.tell) for each in chosen.variants}


def _keep_graphs(graphs: Mapping[Variant, Graph], run: RunFolder) -> None:
    for variant, graph in graphs.items():
        if not (run.engine(variant.name) / engines.ENGINE).is_file():
            put_copy(graph.folder, run.engine(variant.name))


def _work(
    clock: Clock,
    chosen: Chosen,
    graphs: Mapping[Variant, Graph],
    shop: Workshop,
    exam: Exam | None,
) -> Findings:
    """Build the engines, and measure what can be measured here."""
    config, store, tell = shop.config, shop.store, shop.tell
    built = clock.timed(
        "build", lambda: {v.name: engines.build(v, graph, shop) for v, graph in graphs.items()}
    )
    all_engines = {name: each.engine for name, each in built.items()}
    here = {v.name: chosen.available[v.backend].runs for v in graphs}
    running: dict[str, Engine] = {name: each for name, each in all_engines.items() if here[name]}
    timed = clock.timed("bench", lambda: timing.timed(running, config.bench, store, tell))
    prints = clock.timed("inspect", lambda: footprints(running, store, tell))
    scores = {}
    if exam is not None:
        scores = clock.timed(
            "evaluate", lambda: scoring.scored(all_engines, here, exam, (store, tell))
        )
    return Findings(
        graphs=graphs,
        available=chosen.available,
        built=built,
        timed=timed,
        scores=scores,
        coverage={name: each.coverage for name, each in prints.items()},
        memory={name: each.peak for name, each in prints.items()},
        seconds=clock.seconds,
        notes=chosen.notes,
        unscored="" if exam is not None else _why_unscored(config),
    )


def _explained(
    clock: Clock, base: Basis, found: Findings, shop: Workshop, exam: Exam | None
) -> Findings:
    """Return the findings with what shows where errors come from."""
    graphs = found.graphs
    analysis = clock.timed("compare", lambda: analysing.analyse(graphs, base, shop))
    evidence = clock.timed("compare", lambda: showing.evidence_of(graphs, base, analysis, shop))
    if exam is not None:
        evidence = showing.with_answers(evidence, exam, found.scores, shop.run)
    return replace(found, analysis=analysis, evidence=evidence)


def _why_unscored(config: Config) -> str:
    path = config.evaluate.images
    return UNSCORED if path is None else f"`{path}` is not here: give `--eval PATH`"
