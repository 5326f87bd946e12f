"""The job `evaluate`: the outputs of every engine on the same images, read once for all of them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pydantic

from qconvert import backends, sources
from qconvert.backends.base import Engine
from qconvert.backends.ort import open_cpu
from qconvert.calibrate import calibration_file
from qconvert.core import onnx_io
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.config import ExportConfig
from qconvert.core.errors import UsageError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.core.tensors import (
    RunModel,
    Tensors,
    batch_size,
    fixed_batch,
    output_array,
    pad_batch,
    unpad_batch,
)
from qconvert.measure.accuracy import (
    BASELINE,
    BF16_UNSCORED,
    Accuracy,
    ImageScores,
    MeasuredOn,
    fp32_accuracy,
    join_scores,
    score_batch,
    summarize_accuracy,
)
from qconvert.measure.machine import describe_machine
from qconvert.report.model import Report
from qconvert.run.context import (
    EVALUATION_BATCH,
    EvaluationSet,
    JobContext,
    cache_key,
    open_evaluation_set,
)
from qconvert.run.explain_errors import add_changed_images
from qconvert.run.report_files import (
    judge_and_store,
    read_report,
    with_evaluation,
    with_measurement,
)
from qconvert.run.targets import Target, engine_hashes, require_same_inputs

# The SQNR of equal outputs is infinite; the report has None for it, and a note.
SCORES_CODEC = JsonCodec("scores.json", pydantic.TypeAdapter(dict[str, Accuracy]), finite=True)


def evaluate(target: Target, context: JobContext, workers: int | None = None) -> Report:
    """Score the engines on the evaluation images, those that cannot run here by their graph.

    They are compared with the float model of their run, else with the first of them. As many
    `workers` read images.
    """
    graphs = {name: engine.folder / engine.graph for name, engine in target.engines.items()}
    require_same_inputs({"FP32": target.reference, **graphs} if target.run else graphs)
    source = sources.load(str(target.reference), ExportConfig(), trust=False)
    evaluation_set = open_evaluation_set(source, context, workers)
    if evaluation_set is None:
        raise UsageError("there are no images", hint="name a folder: `--eval PATH`")
    runs_here = {name: row.runs for name, row in target.available.items()}
    scores = score_engines(target.engines, runs_here, target.reference, evaluation_set, context)
    report = read_report(target)
    # A package prepares images as for calibration, whatever this evaluation does.
    report = replace(report, preprocess=report.preprocess or dict(evaluation_set.preprocessing))
    calibration, evidence = None, report.evidence
    if target.run is not None:
        target.run.write_classes(evaluation_set.images.classes)
        evidence = add_changed_images(evidence, evaluation_set, scores, target.run)
        if target.run.calibration.is_file():
            calibration = calibration_file.load(target.run.calibration)
    path = context.config.evaluate.images
    report = with_evaluation(report, evaluation_set, scores, calibration, path)
    rows = tuple(
        with_measurement(row, "accuracy", scores.get(row.name), BF16_UNSCORED)
        for row in report.variants
    )
    report = replace(report, variants=rows, evidence=evidence)
    return judge_and_store(report, context.config.gate, target)


def score_engines(
    engines: Mapping[str, Engine],
    runs_here: Mapping[str, bool],
    reference: Path,
    evaluation_set: EvaluationSet,
    context: JobContext,
) -> dict[str, Accuracy]:
    """Return the scores of every engine whose graph can run here, and under "" of FP32; cached.

    An engine that cannot run here is scored by its graph on the CPU.
    """
    end = start_step(context.progress, "evaluate")
    key = cache_key(
        ", ".join(engines),
        onnx_io.fingerprint(onnx_io.load(reference)),
        engines=engine_hashes(engines),
        runs=dict(runs_here),
        images=evaluation_set.digest(),
        machine=describe_machine(),
    )
    compute = partial(
        _measure_scores, engines, runs_here, reference, evaluation_set, context.progress
    )
    scores, hit = cached_step(context.cache, "evaluate", key, compute, SCORES_CODEC)
    images_text = count(scores[BASELINE].images, "image")
    end(f"{images_text}, {count(len(scores) - 1, 'engine')}", hit)
    return scores


def _measure_scores(
    engines: Mapping[str, Engine],
    runs_here: Mapping[str, bool],
    reference: Path,
    evaluation_set: EvaluationSet,
    progress: ProgressCallback,
) -> dict[str, Accuracy]:
    model, images = onnx_io.load(reference), evaluation_set.images
    run_reference, size = open_cpu(model), fixed_batch(onnx_io.inputs(model))
    runs: dict[str, RunModel] = {}
    for name, engine in engines.items():
        if runs_here[name]:
            runs[name] = backends.load(engine.backend).open(engine).run
        elif engine.precision != "bf16":
            runs[name] = open_cpu(onnx_io.load(engine.folder / engine.graph))
    batches: dict[str, list[ImageScores]] = {name: [] for name in (BASELINE, *runs)}
    names: list[str] = []
    for batch in images.batches(size or EVALUATION_BATCH):
        labels = [item.label for item in batch.items]
        expected = _run_batch(run_reference, batch.feeds, size)
        batches[BASELINE].append(score_batch(expected, expected, labels))
        if classes := batches[BASELINE][0].classes:
            images.check_classes(classes)
        for name, run in runs.items():
            outputs = _run_batch(run, batch.feeds, size)
            batches[name].append(score_batch(expected, outputs, labels))
        names += [item.name for item in batch.items]
        progress(Progress("evaluate", "images", done=len(names), total=len(images.names)))
    scores = {BASELINE: fp32_accuracy(join_scores(batches.pop(BASELINE)))}
    for name, parts in batches.items():
        measured_on: MeasuredOn = "engine" if runs_here[name] else "cpu-simulation"
        scores[name] = summarize_accuracy(join_scores(parts), measured_on, names)
    return scores


def _run_batch(run: RunModel, feeds: Tensors, size: int | None) -> Tensors:
    """Run a batch; if the model fixes a larger one, it is padded, and the padding dropped."""
    if size == 1:
        # Every output belongs to the single image, even without a batch axis.
        outputs = run(feeds)
        arrays = {name: output_array(outputs, name) for name in outputs}
        return {
            name: array if array.shape[:1] == (1,) else array[np.newaxis]
            for name, array in arrays.items()
        }
    if size is None:
        return run(feeds)
    return unpad_batch(run(pad_batch(feeds, size)), batch_size(feeds), size)
