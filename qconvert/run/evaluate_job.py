"""The answers of every engine over the same images, which are read once for all of them."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from qconvert import __version__, backends, sources
from qconvert.backends.base import Engine
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.calibrate import calibration_file
from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.config import Config, ExportConfig
from qconvert.core.errors import UsageError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import (
    RunModel,
    Tensors,
    fixed_batch,
    output_array,
    pad_batch,
    unpad_batch,
)
from qconvert.images import ImageChoice, open_images
from qconvert.images.image_files import ReadOptions
from qconvert.images.labels import check_classes
from qconvert.measure.accuracy import (
    BASELINE,
    BF16_UNSCORED,
    Accuracy,
    MeasuredOn,
    fp32_accuracy,
    summarize_accuracy,
)
from qconvert.measure.machine import describe_machine
from qconvert.measure.per_image_scores import ImageScores, join_scores, score_batch
from qconvert.report.model import Report, VariantResult
from qconvert.run import job_images
from qconvert.run.built_engines import engine_hashes
from qconvert.run.explain_errors import add_changed_images
from qconvert.run.job_images import EVALUATION_BATCH, EvaluationSet
from qconvert.run.report_builder import evaluation_info, shared_image_count
from qconvert.run.report_files import (
    judge_and_store,
    read_report,
    with_reason,
    without_reason,
)
from qconvert.run.run_folder import write_classes
from qconvert.run.targets import Target, require_same_inputs

SCORES_FILE = "scores.json"

SCORES_ADAPTER = pydantic.TypeAdapter(dict[str, Accuracy])


def score_engines(
    engines: Mapping[str, Engine],
    runs_here: Mapping[str, bool],
    exam: EvaluationSet,
    work: tuple[Cache, ProgressCallback],
) -> dict[str, Accuracy]:
    """Return the scores of every engine whose graph can run here, and under "" those of FP32.

    An engine that cannot run here is scored by its graph on the CPU.
    """
    store, tell = work
    started = time.perf_counter()
    listing = exam.images.manifest()
    recipe = {
        "name": ", ".join(engines),
        "model": onnx_io.fingerprint(onnx_io.load(exam.model)),
        "engines": json.dumps(engine_hashes(engines), sort_keys=True),
        "runs": json.dumps(dict(runs_here), sort_keys=True),
        "images": listing.digest(),
        "labels": json.dumps(list(exam.images.labels)),
        "preprocessing": json.dumps(dict(exam.preprocessing), sort_keys=True),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "machine": json.dumps(describe_machine(), sort_keys=True),
    }

    def make(folder: Path) -> None:
        found = _measure_scores(engines, runs_here, exam, tell)
        told = SCORES_ADAPTER.dump_json(found, indent=1)
        (folder / SCORES_FILE).write_bytes(told)

    found = store.get_or_make("evaluate", recipe, make)
    scores = SCORES_ADAPTER.validate_json((found.path / SCORES_FILE).read_bytes())
    text = f"{count(scores[BASELINE].images, 'image')}, {count(len(scores) - 1, 'engine')}"
    tell(Progress("evaluate", text, time.perf_counter() - started, found.hit))
    return scores


def _measure_scores(
    engines: Mapping[str, Engine],
    runs_here: Mapping[str, bool],
    exam: EvaluationSet,
    tell: ProgressCallback,
) -> dict[str, Accuracy]:
    reference = open_cpu(onnx_io.load(exam.model))
    runs = {
        name: _engine_run(engine, here=runs_here[name])
        for name, engine in engines.items()
        if runs_here[name] or engine.precision != "bf16"
    }
    parts: dict[str, list[ImageScores]] = {name: [] for name in (BASELINE, *runs)}
    size = fixed_batch(onnx_io.inputs(onnx_io.load(exam.model)))
    total, names = len(exam.images.names), list[str]()
    for batch in exam.images.batches(size or EVALUATION_BATCH):
        labels = [item.label for item in batch.items]
        wanted = _run_batch(reference, batch.feeds, size)
        parts[BASELINE].append(score_batch(wanted, wanted, labels))
        if classes := parts[BASELINE][0].classes:
            check_classes(exam.images, classes)
        for name, run in runs.items():
            parts[name].append(score_batch(wanted, _run_batch(run, batch.feeds, size), labels))
        names += [item.name for item in batch.items]
        tell(Progress("evaluate", "images", done=len(names), total=total))
    scores = {BASELINE: fp32_accuracy(join_scores(parts.pop(BASELINE)))}
    for name, judged in parts.items():
        where: MeasuredOn = "engine" if runs_here[name] else "cpu-simulation"
        scores[name] = summarize_accuracy(join_scores(judged), where, names)
    return scores


def _run_batch(run: RunModel, feeds: Tensors, size: int | None) -> Tensors:
    """Run a batch; where the model fixes a larger one it is filled up, and the filling dropped."""
    count = len(next(iter(feeds.values())))
    if size == 1:
        # Whatever answers one image is that image's, also what has no axis of images.
        made = run(feeds)
        return {name: _as_row(output_array(made, name)) for name in made}
    if not size or count == size:
        return run(feeds)
    return unpad_batch(run(pad_batch(feeds, size)), count, size)


def _as_row(answer: NDArray[Any]) -> NDArray[Any]:
    return answer if answer.shape[:1] == (1,) else answer[np.newaxis]


def _engine_run(engine: Engine, *, here: bool) -> RunModel:
    if here:
        return backends.load(engine.backend).open(engine).run
    return open_cpu(onnx_io.load(engine.folder / engine.graph))


def evaluate(
    target: Target, config: Config, reading: ReadOptions, work: tuple[Cache, ProgressCallback]
) -> Report:
    """Score the engines on the images of the settings, those that cannot run here by their graph.

    They are held against the float model of their run, or the first of them.
    """
    graphs = {name: each.folder / each.graph for name, each in target.engines.items()}
    require_same_inputs({"FP32": target.reference, **graphs} if target.run else graphs)
    exam = _open_evaluation_set(target, config, reading)
    available = target.available
    here = {name: available[engine.backend].runs for name, engine in target.engines.items()}
    scores = score_engines(target.engines, here, exam, work)
    if target.run is not None:
        write_classes(target.run, exam.images.classes)
    report = read_report(target)
    rows = tuple(_with_score(row, scores) for row in report.variants)
    seen = calibration_file.load(target.run.calibration) if _has_calibration(target) else None  # type: ignore[union-attr]
    # What ships reads images as they were calibrated, however these were prepared.
    usual = report.preprocess or dict(exam.preprocessing)
    report = replace(
        report,
        baseline=scores[BASELINE],
        variants=rows,
        preprocess=usual,
        evaluation=evaluation_info(exam, scores, config, usual),
        shared_images=shared_image_count(seen, exam),
    )
    if target.run is not None:
        evidence = add_changed_images(report.evidence, exam, scores, target.run)
        report = replace(report, evidence=evidence)
    return judge_and_store(report, config, target)


def _has_calibration(target: Target) -> bool:
    return target.run is not None and target.run.calibration.is_file()


def _with_score(row: VariantResult, scores: Mapping[str, Accuracy]) -> VariantResult:
    if row.name not in scores:
        return with_reason(replace(row, accuracy=None), "accuracy", BF16_UNSCORED)
    return replace(without_reason(row, "accuracy"), accuracy=scores[row.name])


def _open_evaluation_set(target: Target, config: Config, reading: ReadOptions) -> EvaluationSet:
    chosen = config.evaluate
    if chosen.images is None:
        raise UsageError("there are no images", hint="name a folder: `--eval PATH`")
    source = sources.load(str(target.reference), ExportConfig(), trust=False)
    choice = ImageChoice(chosen.images, chosen.count, chosen.labels, config.calibration.seed)
    known = job_images.preprocessing_or_default(source, config)
    images = open_images(choice, source.inputs, known, reading)
    return EvaluationSet(
        target.reference, images, job_images.fitted_preprocessing_or_empty(source, config)
    )
