"""The job `evaluate`: the outputs of every engine on the same images, read once for all of them."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from qconvert import sources
from qconvert.calibrate.calibration import load_calibration
from qconvert.core import onnx_io, tensors
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.config import ExportConfig
from qconvert.core.errors import UsageError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, start_step
from qconvert.images.image_files import FileImages
from qconvert.images.listing import Images
from qconvert.measure.accuracy import BASELINE, BF16_UNSCORED, Accuracy
from qconvert.measure.chain import ChainTimes, time_chain
from qconvert.measure.comparison import SIMULATION, Comparison
from qconvert.measure.machine import describe_machine
from qconvert.report.model import Report
from qconvert.run import report_files
from qconvert.run.compare import add_changed_images
from qconvert.run.context import (
    EVALUATION_BATCH,
    JobContext,
    RunContext,
    cache_key,
    open_evaluation_set,
    own_code,
    task_request,
)
from qconvert.run.prediction_runs import PredictionRuns
from qconvert.run.targets import Target, engine_hashes, require_same_inputs
from qconvert.tasks.heads import Head


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of every engine, and under "" of FP32; `head` says how outputs were decoded."""

    scores: dict[str, Accuracy]
    head: Head | None = None


CHAIN_CODEC = JsonCodec("chain.json", ChainTimes)
# The SQNR of equal outputs is infinite; the report has None for it, and a note.
EVALUATION_CODEC = JsonCodec("evaluation.json", Evaluation, finite=True)


def evaluate(target: Target, context: JobContext, workers: int | None = None) -> Report:
    """Score the engines on the evaluation images, against the float model or the first of them."""
    graphs = {name: engine.folder / engine.graph for name, engine in target.engines.items()}
    require_same_inputs({"FP32": target.reference, **graphs} if target.run else graphs)
    source = sources.load(str(target.reference), ExportConfig(), trust=False)
    images = open_evaluation_set(source, context, workers)
    if images is None:
        raise UsageError("there are no images", hint="name a folder: `--eval PATH`")
    runs_here = {name: row.runs for name, row in target.available.items()}
    runs = PredictionRuns(target.reference, target.engines, runs_here)
    evaluation = score_engines(runs, images, context)
    scores = evaluation.scores
    report = report_files.read_report(target)
    # A package prepares images as for calibration, whatever this evaluation does.
    report = replace(report, preprocess=report.preprocess or dict(images.preprocessing))
    chain = measure_chain(runs, images, context)
    calibration, evidence = None, report.evidence
    if target.run is not None:
        target.run.write_classes(images.classes)
        target.run.write_head(evaluation.head)
        folder_context = RunContext(
            context.config, context.cache, context.progress, trust=context.trust, folder=target.run
        )
        evidence = add_changed_images(evidence, images, scores, runs, folder_context)
        if target.run.calibration.is_file():
            calibration = load_calibration(target.run.calibration)
    report = report_files.with_evaluation(report, images, scores, calibration)
    rows = tuple(
        report_files.with_measurement(row, "accuracy", scores.get(row.name), BF16_UNSCORED)
        for row in report.variants
    )
    report = replace(report, variants=rows, evidence=evidence, chain=chain)
    return report_files.judge_and_store(report, context.config.gate, target)


def score_engines(predictors: PredictionRuns, images: Images, context: JobContext) -> Evaluation:
    """Return the scores of every engine whose graph can run here, and of FP32; cached."""
    end = start_step(context.progress, "evaluate")
    engines, runs_here = predictors.engines, predictors.runs_here
    ways, machine = [engine_hashes(engines), dict(runs_here)], describe_machine()
    fingerprint, digest = onnx_io.fingerprint(predictors.model), images.digest()
    settings = context.config.evaluate
    task = [asdict(task_request(settings)), own_code(settings)]
    names = ", ".join(engines)
    key = cache_key(names, fingerprint, engines=ways, images=digest, machine=machine, request=task)

    def compute() -> Evaluation:
        # ONNX Runtime's CPU has no kernels for bf16.
        scored = [n for n, engine in engines.items() if runs_here[n] or engine.precision != "bf16"]
        runs = {name: predictors.open(name) for name in (BASELINE, *scored)}
        size = predictors.fixed_batch
        comparison = Comparison(images, task_request(settings), size)
        # While a batch is compared, the next one runs: ONNX Runtime and NumPy let go of Python's lock.
        with ThreadPoolExecutor(1) as pool:
            waiting: Future[None] | None = None
            for batch in images.batches(size or EVALUATION_BATCH):
                outputs = {
                    name: tensors.run_padded(run, batch.feeds, size) for name, run in runs.items()
                }
                if waiting is not None:
                    waiting.result()
                waiting = pool.submit(comparison.add, batch, outputs)
                done, total = batch.items[-1].position + 1, len(images.names)
                context.progress(Progress("evaluate", "images", done=done, total=total))
            if waiting is not None:
                waiting.result()
        scores = {
            name: comparison.summarize(name, "engine" if runs_here.get(name, True) else SIMULATION)
            for name in runs
        }
        return Evaluation(scores, comparison.reading.head if comparison.reading else None)

    result, hit = cached_step(context.cache, "evaluate", key, compute, EVALUATION_CODEC)
    scores = result.scores
    # The same truth may be in another place the next time.
    baseline = replace(scores[BASELINE], notes=(*images.notes, *scores[BASELINE].notes))
    scores = {**scores, BASELINE: baseline}
    scored, engine_count = count(scores[BASELINE].images, "image"), len(scores) - 1
    end(f"{scored}, {count(engine_count, 'engine')}", hit)
    return replace(result, scores=scores)


def measure_chain(runs: PredictionRuns, images: Images, context: JobContext) -> ChainTimes | None:
    """Return the times from file to predictions of the engines that run here; cached.

    None for classifiers, whose predictions cost nothing, and where inputs are no files.
    """
    engines = {name: engine for name, engine in runs.engines.items() if runs.runs_here.get(name)}
    if not isinstance(images, FileImages) or not engines:
        return None
    reading = runs.choose_reading(images, context)
    if reading is None:
        return None
    end, settings = start_step(context.progress, "chain"), context.config.evaluate
    key = cache_key(
        ", ".join(engines),
        onnx_io.fingerprint(runs.model),
        engines=engine_hashes(engines),
        images=images.digest(),
        machine=describe_machine(),
        task=[asdict(task_request(settings)), own_code(settings)],
    )

    def compute() -> ChainTimes:
        opened = {name: runs.open(name) for name in engines}
        return time_chain(images, opened, runs.fixed_batch, reading)

    times, hit = cached_step(context.cache, "chain", key, compute, CHAIN_CODEC)
    end(f"from file to predictions, {count(times.images, 'image')}", hit)
    return times
