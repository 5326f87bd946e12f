"""What a reader should know before trusting the figures: a sentence each, with what to do."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from qconvert.core import number_format
from qconvert.measure.accuracy import IDENTICAL, IDENTICAL_WHERE_FINITE, NO_CLASSES, NO_LABELS
from qconvert.measure.latency import Latency
from qconvert.measure.stats import summarize_latency
from qconvert.report import metrics
from qconvert.report.gates import FLOAT_PRECISIONS, LOW_TOP1, is_acceptable
from qconvert.report.model import Report, UnquantizedNode, VariantResult

FEW_IMAGES = 100
WIDE_PP = 1.0  # wider than what is mostly at stake
TARGET_PP = 0.5
SHOWN_IN_TABLE = (IDENTICAL, IDENTICAL_WHERE_FINITE, NO_LABELS, NO_CLASSES)
CPU_PROVIDER = "CPUExecutionProvider"


def collect_notes(report: Report) -> tuple[str, ...]:
    """Return all notes, those that steps and measurements made first; none twice."""
    told = [*report.run_notes, *_measurement_notes(report)]
    for rule in NOTE_RULES:
        told += rule(report)
    return tuple(dict.fromkeys(told))


def _measurement_notes(report: Report) -> Iterator[str]:
    """Yield what was noted beside a figure, once for all the variants that share it.

    What is true of the images themselves is noted with the baseline already, and what the accuracy
    table says below itself is not said again.
    """
    known = set(report.baseline.notes) if report.baseline is not None else set()
    yield from (note for note in sorted(known) if note not in SHOWN_IN_TABLE)
    yield from _doubtful_timings(report)
    found: dict[str, list[str]] = {}
    for variant in report.variants:
        remarks = [(variant.name, note) for note in variant.notes]
        if variant.accuracy is not None:
            remarks += [(variant.name, note) for note in variant.accuracy.notes]
        for name, note in remarks:
            found.setdefault(note, []).append(f"`{name}`")
    for note, names in found.items():
        if note not in known and note not in SHOWN_IN_TABLE:
            yield f"{'; '.join(dict.fromkeys(names))}: {note}"


def _doubtful_timings(report: Report) -> Iterator[str]:
    """Yield one sentence about all timings that are doubtful; the JSON has one for each."""
    found = [
        (f"`{variant.name}` at batch {latency.batch}", note)
        for variant in report.variants
        for latency in variant.latency
        for note in latency.notes
    ]
    if not found:
        return
    first, why = found[0]
    alike = {place for place, note in found if note == why} - {first}
    others = {place for place, _ in found} - alike - {first}
    told = f" (and {number_format.count(len(alike), 'more timing')})" if alike else ""
    are = "is" if len(others) == 1 else "are"
    too = (
        f"; {number_format.count(len(others), 'more timing')} {are} doubtful too" if others else ""
    )
    yield f"{first}{told}: {why}{too}"


def slow_int8(report: Report) -> Iterator[str]:
    """Say where INT8 is not faster than what costs no accuracy, and what may be the cause."""
    for variant in report.variants:
        latency = metrics.headline_latency(variant)
        found = [] if latency is None else _faster_floats(report, variant, latency)
        if variant.precision != "int8" or latency is None or not found:
            continue
        fitting = [pair for pair in found if is_acceptable(report, pair[1])]
        theirs, faster = min(fitting or found, key=lambda pair: pair[0])
        ship = f"ship `{faster.name}`, or look" if fitting else "look"
        yield (
            f"INT8 is not faster than {faster.precision.upper()} on `{variant.backend}` "
            f"({number_format.ms(summarize_latency(latency).median_ms)} against {number_format.ms(theirs)} ms), "
            f"{_int8_reason(variant)}: {ship} with `qconvert inspect --quantized`"
        )


def _faster_floats(
    report: Report, variant: VariantResult, latency: Latency
) -> list[tuple[float, VariantResult]]:
    """Return the float engines of the backend that take no longer, with what they take."""
    ours = summarize_latency(latency).median_ms
    found: list[tuple[float, VariantResult]] = []
    for each in report.variants:
        other = metrics.latency_at(each, latency.batch, latency.where)
        float_ = each.backend == variant.backend and each.precision in FLOAT_PRECISIONS
        if float_ and other is not None and summarize_latency(other).median_ms <= ours:
            found.append((summarize_latency(other).median_ms, each))
    return found


def _int8_reason(variant: VariantResult) -> str:
    if not variant.unquantized:
        return f"though {_all_of(variant.candidates)} quantized"
    kinds = Counter(each.op for each in variant.unquantized)
    op, most = kinds.most_common(1)[0]
    biggest = [each for each in variant.unquantized if each.op == op]
    return (
        f"because {len(variant.unquantized)} of {max(variant.candidates, len(variant.unquantized))} operators "
        f"are not quantized, most of them {op} ({most}: {_reasons(biggest)})"
    )


def _all_of(candidates: int) -> str:
    return f"all {candidates} operators that could be are" if candidates else "its graph is"


def _reasons(left: Sequence[UnquantizedNode]) -> str:
    reason, _ = Counter(each.reason for each in left).most_common(1)[0]
    node = next(each.node for each in left if each.reason == reason)
    return f"{reason}, as in `{node}`"


def simulated_accuracy(report: Report) -> Iterator[str]:
    """Name the engines whose answers are those of their graph on another machine's kernels."""
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


def shared_images(report: Report) -> Iterator[str]:
    """Warn where accuracy was measured on images that the ranges were made from."""
    if report.shared_images:
        yield (
            f"calibration and evaluation share {number_format.count(report.shared_images, 'image')}, "
            "so the accuracy may look better than it is: evaluate on other images"
        )


def other_preprocessing(report: Report) -> Iterator[str]:
    """Warn where images were judged that are not as those the engines were made for."""
    images, usual = report.evaluation, report.preprocess
    if images is None or not images.prepared:
        return
    names = [name for name, value in images.prepared.items() if value != usual.get(name)]
    yield (
        f"images for accuracy were prepared otherwise than for calibration ({', '.join(names)}): "
        "`qconvert evaluate` without `--preprocess` and its like measures what ships"
    )


def few_images(report: Report) -> Iterator[str]:
    """Warn where too few images were looked at for the differences that matter."""
    rated = [variant.accuracy for variant in report.variants if variant.accuracy is not None]
    # Where only some images have labels, top-1 rests on those.
    images = min((each.labelled or each.images for each in rated), default=0)
    partly = any(each.labelled and each.labelled < each.images for each in rated)
    noun = "labelled image" if partly else "image"
    widest = max((each.half_width_pp or 0.0 for each in rated), default=0.0)
    if 0 < images < FEW_IMAGES:
        yield (
            f"accuracy rests on {number_format.count(images, noun)}: "
            f"evaluate on {FEW_IMAGES} or more before trusting it"
        )
    elif widest > WIDE_PP:
        enough = _round_up(images * (widest / TARGET_PP) ** 2)
        yield (
            f"intervals are as wide as ± {widest:.1f} pp with {number_format.count(images, noun)}: "
            f"about {enough} would bring them to ± {TARGET_PP} pp"
        )


def _round_up(value: float) -> int:
    step = int(10 ** max(len(str(int(value))) - 2, 0))
    return int(-(-value // step) * step)


def fp16_computed_in_float(report: Report) -> Iterator[str]:
    """Say where half precision saves space and no time, because nothing computes in it."""
    for variant in report.variants:
        if variant.precision == "fp16" and _runs_in_float(variant):
            yield (
                f"`{variant.name}` is stored in half the bytes and computed in float32 here: "
                "ship it for its size, and another precision for speed"
            )


def _runs_in_float(variant: VariantResult) -> bool:
    """Tell it from the nodes that ran; ONNX Runtime has no FP16 kernels for x86 CPUs."""
    if variant.by_precision is not None:
        return not variant.by_precision.get("fp16")
    return set(variant.by_provider) == {CPU_PROVIDER}


def low_baseline(report: Report) -> Iterator[str]:
    """Doubt labels and preprocessing where the FP32 model itself is mostly wrong."""
    top1 = report.baseline.top1 if report.baseline is not None else None
    if top1 is not None and top1 < LOW_TOP1:
        yield (
            f"the FP32 model itself is right on only {number_format.percent(top1)} % of the images: "
            "check that `--preprocess` and the numbers of the labels are those it was trained with"
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
