"""What a reader should know before trusting the numbers: one sentence each, with what to do."""

from collections import Counter
from collections.abc import Callable, Iterator

from qconvert.core import number_format
from qconvert.measure.accuracy import IDENTICAL, IDENTICAL_WHERE_FINITE, NO_CLASSES, NO_LABELS
from qconvert.measure.latency import summarize_latency
from qconvert.report import metrics
from qconvert.report.gates import FLOAT_PRECISIONS, LOW_TOP1, is_acceptable
from qconvert.report.model import Report, VariantResult

FEW_IMAGES = 100
WIDE_PP = 1.0  # an interval wider than most differences of interest
TARGET_PP = 0.5
# Footnotes of the accuracy table.
SHOWN_IN_TABLE = (IDENTICAL, IDENTICAL_WHERE_FINITE, NO_LABELS, NO_CLASSES)
CPU_PROVIDER = "CPUExecutionProvider"


def collect_notes(report: Report) -> tuple[str, ...]:
    """Return all notes without repetition; those of steps and measurements come first."""
    notes = [*report.run_notes, *_measurement_notes(report)]
    for rule in NOTE_RULES:
        notes += rule(report)
    return tuple(dict.fromkeys(notes))


def _measurement_notes(report: Report) -> Iterator[str]:
    """Yield the notes of measurements, each once for all the variants that share it.

    What concerns the images themselves is a note of the baseline.
    """
    baseline = report.baseline.notes if report.baseline is not None else ()
    yield from (note for note in sorted(set(baseline)) if note not in SHOWN_IN_TABLE)
    yield from _doubtful_timings(report)
    variants_by_note: dict[str, list[str]] = {}
    for variant in report.variants:
        accuracy_notes = variant.accuracy.notes if variant.accuracy is not None else ()
        for note in (*variant.notes, *accuracy_notes):
            variants_by_note.setdefault(note, []).append(f"`{variant.name}`")
    for note, names in variants_by_note.items():
        if note not in (*baseline, *SHOWN_IN_TABLE):
            yield f"{'; '.join(dict.fromkeys(names))}: {note}"


def _doubtful_timings(report: Report) -> Iterator[str]:
    """Yield one sentence about all doubtful timings; the JSON has a note for each."""
    doubts = [
        (f"`{variant.name}` at batch {latency.batch}", note)
        for variant in report.variants
        for latency in variant.latency
        for note in latency.notes
    ]
    if not doubts:
        return
    first, reason = doubts[0]
    same = {timing for timing, note in doubts if note == reason} - {first}
    others = {timing for timing, _ in doubts} - same - {first}
    sentence = first
    if same:
        sentence += f" (and {number_format.count(len(same), 'more timing')})"
    sentence += f": {reason}"
    if others:
        verb = "is" if len(others) == 1 else "are"
        sentence += f"; {number_format.count(len(others), 'more timing')} {verb} doubtful too"
    yield sentence


def slow_int8(report: Report) -> Iterator[str]:
    """Say where INT8 is not faster than a float precision, and what may be the cause."""
    for variant in report.variants:
        latency = metrics.headline_latency(variant)
        if variant.precision != "int8" or latency is None:
            continue
        ms = summarize_latency(latency).median_ms
        faster: list[tuple[float, VariantResult]] = []
        for other in report.variants:
            timed = metrics.latency_at(other, latency.batch, latency.where)
            comparable = other.backend == variant.backend and other.precision in FLOAT_PRECISIONS
            if comparable and timed is not None and summarize_latency(timed).median_ms <= ms:
                faster.append((summarize_latency(timed).median_ms, other))
        if not faster:
            continue
        acceptable = [pair for pair in faster if is_acceptable(report, pair[1])]
        float_ms, fastest = min(acceptable or faster, key=lambda pair: pair[0])
        advice = f"ship `{fastest.name}`, or look" if acceptable else "look"
        yield (
            f"INT8 is not faster than {fastest.precision.upper()} on `{variant.backend}` "
            f"({number_format.ms(ms)} against {number_format.ms(float_ms)} ms), "
            f"{_int8_reason(variant)}: {advice} with `qconvert inspect --quantized`"
        )


def _int8_reason(variant: VariantResult) -> str:
    left = variant.unquantized
    if not left:
        candidates = variant.candidates
        all_of = f"all {candidates} operators that could be are" if candidates else "its graph is"
        return f"though {all_of} quantized"
    op, count = Counter(node.op for node in left).most_common(1)[0]
    reason = Counter(node.reason for node in left if node.op == op).most_common(1)[0][0]
    example = next(node.node for node in left if (node.op, node.reason) == (op, reason))
    return (
        f"because {len(left)} of {max(variant.candidates, len(left))} operators are not quantized, "
        f"most of them {op} ({count}: {reason}, as in `{example}`)"
    )


def low_baseline(report: Report) -> Iterator[str]:
    """Doubt labels and preprocessing where the FP32 model itself is mostly wrong."""
    top1 = report.baseline.top1 if report.baseline is not None else None
    if top1 is not None and top1 < LOW_TOP1:
        yield (
            f"the FP32 model is right on only {number_format.percent(top1)} % of the images: "
            "check that `--preprocess` and the class numbers of the labels are those of its "
            "training"
        )


def other_preprocessing(report: Report) -> Iterator[str]:
    """Warn where the evaluation images were not prepared as the engines expect."""
    images = report.evaluation
    if images is None or not images.prepared:
        return
    names = [key for key, value in images.prepared.items() if value != report.preprocess.get(key)]
    yield (
        f"evaluation and calibration images were prepared differently ({', '.join(names)}): "
        "`qconvert evaluate` without preprocessing options measures what ships"
    )


def shared_images(report: Report) -> Iterator[str]:
    """Warn where accuracy was measured on calibration images."""
    if report.shared_images:
        yield (
            "calibration and evaluation share "
            f"{number_format.count(report.shared_images, 'image')}, so the accuracy may look "
            "better than it is: evaluate on other images"
        )


def few_images(report: Report) -> Iterator[str]:
    """Warn where there are too few images for the differences that matter."""
    scored = [variant.accuracy for variant in report.variants if variant.accuracy is not None]
    # Where only some images have labels, top-1 rests on those.
    images = min((accuracy.labelled or accuracy.images for accuracy in scored), default=0)
    partly = any(a.labelled and a.labelled < a.images for a in scored)
    counted = number_format.count(images, "labelled image" if partly else "image")
    widest = max((accuracy.half_width_pp or 0.0 for accuracy in scored), default=0.0)
    if 0 < images < FEW_IMAGES:
        yield f"accuracy rests on {counted}: evaluate on {FEW_IMAGES} or more before trusting it"
    elif widest > WIDE_PP:
        needed = images * (widest / TARGET_PP) ** 2
        digits = int(10 ** max(len(str(int(needed))) - 2, 0))
        yield (
            f"intervals are as wide as ± {widest:.1f} pp with {counted}: about "
            f"{int(-(-needed // digits) * digits)} would bring them to ± {TARGET_PP} pp"
        )


def simulated_accuracy(report: Report) -> Iterator[str]:
    """Name the engines whose accuracy was measured with other kernels than their own."""
    names = [
        f"`{variant.name}`"
        for variant in report.variants
        if variant.accuracy is not None and variant.accuracy.measured_on == "cpu-simulation"
    ]
    if names:
        yield (
            f"accuracy of {', '.join(names)} is that of the same graph on ONNX Runtime's CPU: "
            "run `qconvert evaluate` on the run folder where the engine works"
        )


def fp16_computed_in_float(report: Report) -> Iterator[str]:
    """Say where FP16 saves space and no time; ONNX Runtime has no FP16 kernels for x86 CPUs."""
    for variant in report.variants:
        if variant.precision != "fp16":
            continue
        if variant.by_precision is not None:
            in_float = not variant.by_precision.get("fp16")
        else:
            in_float = set(variant.by_provider) == {CPU_PROVIDER}
        if in_float:
            yield (
                f"`{variant.name}` is stored in half the bytes and computed in float32 here: "
                "ship it for its size, and another precision for speed"
            )


NOTE_RULES: tuple[Callable[[Report], Iterator[str]], ...] = (
    slow_int8,
    low_baseline,
    other_preprocessing,
    shared_images,
    few_images,
    simulated_accuracy,
    fp16_computed_in_float,
)
