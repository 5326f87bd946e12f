"""Engines that are built already, timed or scored anew; a run's report takes the new figures."""

from collections.abc import Mapping
from dataclasses import replace

from qconvert import sources
from qconvert.calibrate import ranges_file
from qconvert.config import Config, Export
from qconvert.errors import Unavailable, UsageError
from qconvert.images import ImageChoice, open_images
from qconvert.images.reading import Reading
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.machine import machine
from qconvert.pipeline import pictures, scoring, timing
from qconvert.pipeline.assembling import evaluated, now, shared
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.run_folder import keep_classes
from qconvert.pipeline.scoring import BASELINE, BF16, Exam
from qconvert.pipeline.showing import with_answers
from qconvert.pipeline.targets import Target, keep, report_of, require_same_inputs
from qconvert.report.conclude import conclude
from qconvert.report.model import Report, Variant
from qconvert.store import Store


def bench(target: Target, config: Config, tell: Tell) -> Report:
    """Time the engines that run here, whatever was measured before."""
    available = target.available
    running = {
        name: engine for name, engine in target.engines.items() if available[engine.backend].runs
    }
    if not running:
        first = next(iter(available.values()))
        raise Unavailable(
            f"none of these engines runs here: {first.reason}",
            hint=first.cure or "`qconvert doctor` shows what works here",
        )
    found = timing.measured(running, config.bench, tell)
    report = report_of(target)
    rows = []
    for row in report.variants:
        if row.name in found:
            without = _without(row, "latency")
            rows.append(replace(without, latency=found[row.name]))
        else:
            idle = replace(row, latency=())
            rows.append(_with_reason(idle, "latency", available[row.backend].reason))
    report = replace(report, machine=machine(), created=now())
    return _concluded(replace(report, variants=tuple(rows)), config, target)


def evaluate(target: Target, config: Config, reading: Reading, work: tuple[Store, Tell]) -> Report:
    """Score the engines on the images of the settings, those that cannot run here by their graph.

    They are held against the float model of their run, or the first of them.
    """
    graphs = {name: each.folder / each.graph for name, each in target.engines.items()}
    require_same_inputs({"FP32": target.reference, **graphs} if target.run else graphs)
    exam = _exam(target, config, reading)
    available = target.available
    here = {name: available[engine.backend].runs for name, engine in target.engines.items()}
    scores = scoring.scored(target.engines, here, exam, work)
    if target.run is not None:
        keep_classes(target.run, exam.images.classes)
    report = report_of(target)
    rows = tuple(_scored(row, scores) for row in report.variants)
    seen = ranges_file.load(target.run.calibration) if _has_calibration(target) else None  # type: ignore[union-attr]
    # What ships reads images as they were calibrated, however these were prepared.
    usual = report.preprocess or dict(exam.preprocessing)
    report = replace(
        report,
        baseline=scores[BASELINE],
        variants=rows,
        preprocess=usual,
        evaluation=evaluated(exam, scores, config, usual),
        shared_images=shared(seen, exam),
    )
    if target.run is not None:
        evidence = with_answers(report.evidence, exam, scores, target.run)
        report = replace(report, evidence=evidence)
    return _concluded(report, config, target)


def _has_calibration(target: Target) -> bool:
    return target.run is not None and target.run.calibration.is_file()


def _concluded(report: Report, config: Config, target: Target) -> Report:
    """Return the report judged by the limits of now; the run keeps it judged by its own."""
    if target.run is not None:
        keep(conclude(report, target.run.settings().gate), target)
    return conclude(report, config.gate)


def _scored(row: Variant, scores: Mapping[str, Accuracy]) -> Variant:
    if row.name not in scores:
        return _with_reason(replace(row, accuracy=None), "accuracy", BF16)
    return replace(_without(row, "accuracy"), accuracy=scores[row.name])


def _exam(target: Target, config: Config, reading: Reading) -> Exam:
    chosen = config.evaluate
    if chosen.images is None:
        raise UsageError("there are no images", hint="name a folder: `--eval PATH`")
    source = sources.load(str(target.reference), Export(), trust=False)
    choice = ImageChoice(chosen.images, chosen.count, chosen.labels, config.calibration.seed)
    known = pictures.preprocessing_or_usual(source, config)
    images = open_images(choice, source.inputs, known, reading)
    return Exam(target.reference, images, pictures.settled_or_none(source, config))


def _without(row: Variant, name: str) -> Variant:
    reasons = {key: why for key, why in row.unmeasured.items() if key != name}
    return replace(row, unmeasured=reasons)


def _with_reason(row: Variant, name: str, why: str) -> Variant:
    return replace(row, unmeasured={**row.unmeasured, name: why})
