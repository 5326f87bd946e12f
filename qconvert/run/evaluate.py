"""The job `evaluate`: the outputs of every engine on the same images, read once for all of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from qconvert import backends, sources
from qconvert.backends.base import Engine
from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import load_calibration
from qconvert.core import onnx_io, tensors
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.config import ExportConfig
from qconvert.core.errors import UsageError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, start_step
from qconvert.images.listing import Images
from qconvert.measure import accuracy
from qconvert.measure.accuracy import BASELINE, BF16_UNSCORED, Accuracy
from qconvert.measure.machine import describe_machine
from qconvert.report.model import Report
from qconvert.run import report_files
from qconvert.run.compare import add_changed_images
from qconvert.run.context import EVALUATION_BATCH, JobContext, cache_key, open_evaluation_set
from qconvert.run.targets import Target, engine_hashes, require_same_inputs

# The SQNR of equal outputs is infinite; the report has None for it, and a note.
SCORES_CODEC = JsonCodec("scores.json", dict[str, Accuracy], finite=True)


def evaluate(target: Target, context: JobContext, workers: int | None = None) -> Report:
    """Score the engines on the evaluation images, against the float model or the first of them."""
    graphs = {name: engine.folder / engine.graph for name, engine in target.engines.items()}
    require_same_inputs({"FP32": target.reference, **graphs} if target.run else graphs)
    source = sources.load(str(target.reference), ExportConfig(), trust=False)
    images = open_evaluation_set(source, context, workers)
    if images is None:
        raise UsageError("there are no images", hint="name a folder: `--eval PATH`")
    runs_here = {name: row.runs for name, row in target.available.items()}
    scores = score_engines(target.engines, runs_here, target.reference, images, context)
    report = report_files.read_report(target)
    # A package prepares images as for calibration, whatever this evaluation does.
    report = replace(report, preprocess=report.preprocess or dict(images.preprocessing))
    calibration, evidence = None, report.evidence
    if target.run is not None:
        target.run.write_classes(images.classes)
        evidence = add_changed_images(evidence, images, scores, target.run)
        if target.run.calibration.is_file():
            calibration = load_calibration(target.run.calibration)
    report = report_files.with_evaluation(report, images, scores, calibration)
    rows = tuple(
        report_files.with_measurement(row, "accuracy", scores.get(row.name), BF16_UNSCORED)
        for row in report.variants
    )
    report = replace(report, variants=rows, evidence=evidence)
    return report_files.judge_and_store(report, context.config.gate, target)


def score_engines(
    engines: Mapping[str, Engine],
    runs_here: Mapping[str, bool],
    reference: Path,
    images: Images,
    context: JobContext,
) -> dict[str, Accuracy]:
    """Return the scores of every engine whose graph can run here, and under "" of FP32; cached."""
    end = start_step(context.progress, "evaluate")
    model, names = onnx_io.load(reference), ", ".join(engines)
    ways, machine = [engine_hashes(engines), dict(runs_here)], describe_machine()
    fingerprint, digest = onnx_io.fingerprint(model), images.digest()
    key = cache_key(names, fingerprint, engines=ways, images=digest, machine=machine)

    def compute() -> dict[str, Accuracy]:
        run_reference, size = open_cpu(model), tensors.fixed_batch(onnx_io.inputs(model))
        runs: dict[str, tensors.RunModel] = {}
        for name, engine in engines.items():
            if runs_here[name]:
                runs[name] = backends.load(engine.backend).open(engine).run
            elif engine.precision != "bf16":
                runs[name] = open_cpu(onnx_io.load(engine.folder / engine.graph))
        batches: dict[str, list[accuracy.ImageScores]] = {name: [] for name in (BASELINE, *runs)}
        image_names: list[str] = []
        for batch in images.batches(size or EVALUATION_BATCH):
            labels = [item.label for item in batch.items]
            expected = _run_batch(run_reference, batch.feeds, size)
            batches[BASELINE].append(accuracy.score_batch(expected, expected, labels))
            if classes := batches[BASELINE][0].classes:
                images.check_classes(classes)
            for name, run in runs.items():
                outputs = _run_batch(run, batch.feeds, size)
                batches[name].append(accuracy.score_batch(expected, outputs, labels))
            image_names += [item.name for item in batch.items]
            done, total = len(image_names), len(images.names)
            context.progress(Progress("evaluate", "images", done=done, total=total))
        scores = {BASELINE: accuracy.fp32_accuracy(accuracy.join_scores(batches.pop(BASELINE)))}
        for name, parts in batches.items():
            measured_on: accuracy.MeasuredOn = "engine" if runs_here[name] else "cpu-simulation"
            joined = accuracy.join_scores(parts)
            scores[name] = accuracy.summarize_accuracy(joined, measured_on, image_names)
        return scores

    scores, hit = cached_step(context.cache, "evaluate", key, compute, SCORES_CODEC)
    scored, engine_count = count(scores[BASELINE].images, "image"), len(scores) - 1
    end(f"{scored}, {count(engine_count, 'engine')}", hit)
    return scores


def _run_batch(run: tensors.RunModel, feeds: tensors.Tensors, size: int | None) -> tensors.Tensors:
    """Run a batch; if the model fixes a larger one, it is padded, and the padding dropped."""
    if size == 1:
        # Every output belongs to the single image, even without a batch axis.
        outputs = run(feeds)
        arrays = {name: tensors.output_array(outputs, name) for name in outputs}
        return {
            name: array if array.shape[:1] == (1,) else array[np.newaxis]
            for name, array in arrays.items()
        }
    if size is None:
        return run(feeds)
    return tensors.unpad_batch(run(tensors.pad_batch(feeds, size)), tensors.batch_size(feeds), size)
