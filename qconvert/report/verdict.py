"""Notes and verdict: which engine of a report to ship, and what limits trust in it.

A variant is accurate by the gates on accuracy where there are any, else with at least
`MIN_AGREEMENT` percent of FP32's predictions or at most `MAX_LOSS` points of the task's metric
lost. Where FP32 itself has less than `LOW_SCORES`, only agreement counts.

The fastest acceptable engine is the best. One that is slower than the fp32 engine of its backend is
best only if that one is not acceptable, and the verdict then says why it is not.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from qconvert.backends.system_probe import SIMULATED_GPU
from qconvert.core import number_format as fmt
from qconvert.core.config import GateConfig
from qconvert.core.formats import (
    FORMATS,
    format_title,
    needs_ranges,
    quantized_format,
    stores_weights_only,
)
from qconvert.measure.accuracy import IDENTICAL, IDENTICAL_WHERE_FINITE, NO_CLASSES, NO_LABELS
from qconvert.measure.latency import summarize_latency
from qconvert.report import metrics
from qconvert.report.chain import chain_notes
from qconvert.report.cpu_speed import cpu_limit_note, foreign_notes, limiting_class
from qconvert.report.gates import SCORE_GATES, describe_result, evaluate_gate, evaluate_gates
from qconvert.report.metrics import NOT_TIMED_TOGETHER
from qconvert.report.model import Report, VariantResult
from qconvert.report.weight_only import describe_saving

MIN_AGREEMENT = 97.0
MAX_LOSS = 1.0
# Below these percents of FP32's own score only agreement counts.
LOW_SCORES = {"classify": 25.0, "detect": 5.0, "segment": 10.0, "embed": 5.0}
# What agrees with FP32.
AGREEING = {"detect": "boxes", "segment": "pixels", "embed": "nearest neighbours"}
FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")

# Footnotes of the accuracy table.
SHOWN_IN_TABLE = (IDENTICAL, IDENTICAL_WHERE_FINITE, NO_LABELS, NO_CLASSES)
FEW_IMAGES = 100
SIMULATED = (
    "the GPU is simulated: its engines ran on the CPU, so that their times, memory and power are "
    "not those of any device"
)


def conclude(report: Report, limits: GateConfig) -> Report:
    """Return the report with gates, notes and verdict; repeating this changes nothing."""
    report = replace(report, gates=evaluate_gates(report, limits))
    best, verdict = _decide(report)
    is_simulated = SIMULATED_GPU in report.machine.get("gpu", "")
    if is_simulated:
        verdict = f"On a simulated GPU: {verdict}"
    notes = [
        *([SIMULATED] if is_simulated else []),
        *report.run_notes,
        *_measurement_notes(report),
        *_slow_integer_notes(report),
        *filter(None, [cpu_limit_note(report)]),
        *foreign_notes(report),
        *_image_notes(report),
        *_kernel_notes(report),
        *chain_notes(report),
    ]
    return replace(report, notes=tuple(dict.fromkeys(notes)), best=best, verdict=verdict)


def _decide(report: Report) -> tuple[str, str]:
    """Return the fastest variant that is accurate and passes its gates, if any, and the verdict."""
    timed = [v for v in report.variants if metrics.headline_latency(v) is not None]
    if not timed:
        return "", _nothing_timed(report)
    acceptable = [variant for variant in timed if not _objection(report, variant)]
    if not acceptable:
        quantized = [variant for variant in timed if variant.precision != "fp32"]
        objection = _objection(report, min(quantized or timed, key=metrics.ms_per_image))
        return "", f"Nothing to ship: {objection}, and no other engine does better"
    slower = [
        variant
        for variant in acceptable
        if _is_slowed(report, variant) and metrics.fp32_variant(report, variant) in acceptable
    ]
    best = min((v for v in acceptable if v not in slower), key=metrics.ms_per_image)
    facts = ", ".join(_facts(report, best))
    if is_accurate(report, best) is None:
        if best.accuracy is not None and best.accuracy.sqnr_db is not None:
            return "", f"Ship `{best.name}` if its output error is acceptable to you: {facts}"
        return "", (
            f"`{best.name}` is the fastest ({facts}), but its accuracy is unknown: "
            "run `qconvert evaluate` with `--eval`"
        )
    # Engines that are beaten only because they were not timed with the best: for fp32 all of its
    # backend, for others those that were timed before.
    untimed = [
        f"`{variant.name}`"
        for variant in report.variants
        if variant.backend == best.backend
        and metrics.headline_latency(variant) is None
        and (best.precision == "fp32" or variant.unmeasured.get("latency") == NOT_TIMED_TOGETHER)
        and is_accurate(report, variant) is not False
    ]
    if untimed:
        return "", (
            f"Not timed together with `{best.name}`: {', '.join(untimed)}; "
            "`qconvert bench RUN` times all of them together"
        )
    objection = _why_not_another(report, best, timed)
    lead = f"{objection}, so ship" if objection else "Ship"
    if any(gate.variant == best.name for gate in report.gates):
        all_passed = all(gate.passed for gate in report.gates)
        facts += "; all gates passed" if all_passed else "; its gates passed"
    backends = {variant.backend for variant in timed}
    untimed = [f"`{v.backend}`" for v in report.variants if v.backend not in backends]
    if untimed:
        facts += f"; nothing was timed on {', '.join(dict.fromkeys(untimed))}"
    return best.name, f"{lead} `{best.name}`: {facts}"


def _is_slowed(report: Report, variant: VariantResult) -> bool:
    """Whether a variant is slower than the fp32 engine of its backend."""
    ratio = metrics.headline_speedup(report, variant)
    return ratio is not None and ratio < 1


def _why_not_another(report: Report, best: VariantResult, timed: list[VariantResult]) -> str:
    """Return why neither integers nor the faster fp32 engine is the best; empty if one of them is.

    INT8 comes before other formats of integers.
    """
    base = metrics.fp32_variant(report, best)
    if base is not None and _is_slowed(report, best):
        return _objection(report, base)
    rivals = [
        variant
        for name in FORMATS
        for variant in timed
        if variant.precision == name and variant.backend == best.backend
    ]
    if not rivals or rivals[0] is best:
        return ""
    # A faster float engine that fails its gates is no reason for a third one.
    faster = metrics.ms_per_image(best) <= metrics.ms_per_image(rivals[0])
    if not (faster or _is_slowed(report, rivals[0])) or best.precision not in FLOAT_PRECISIONS:
        return _objection(report, rivals[0])
    limiting, title = limiting_class(report, rivals[0]), format_title(rivals[0].precision)
    place = f"on this CPU ({limiting.name})" if limiting else "here"
    return f"{title[0].upper()}{title[1:]} is not faster {place}"


def _nothing_timed(report: Report) -> str:
    if not report.variants:
        return "Nothing was built"
    reason = metrics.missing_reason(report.variants[0], "latency")
    if all(variant.engine is None for variant in report.variants):
        return f"Nothing was built ({reason}): `qconvert build --from RUN` continues"
    if reason != metrics.NOT_MEASURED:
        return f"Nothing was timed ({reason}): run `qconvert bench` where the engines work"
    compared = [
        f"`{variant.name}` {fact}"
        for variant in report.variants
        if variant.precision != "fp32" and (fact := _accuracy_fact(report, variant))
    ]
    return "Nothing was timed" + (f"; accuracy: {'; '.join(compared)}" if compared else "")


def _facts(report: Report, variant: VariantResult) -> Iterator[str]:
    latency, ratio = metrics.headline_latency(variant), metrics.headline_speedup(report, variant)
    if latency is not None and (ratio is None or variant.precision == "fp32"):
        yield f"{fmt.ms(summarize_latency(latency).median_ms)} ms at batch {latency.batch}"
    if variant.precision == "fp32":
        return
    if ratio is not None:
        yield f"{fmt.ratio(ratio)} as fast as fp32"
    size = metrics.size_ratio(report, variant)
    if size is not None:
        yield f"{100 * size:.0f} % of the size"
    if fact := _accuracy_fact(report, variant):
        yield fact
    if fact := _low_bits_fact(report, variant):
        yield fact


def _low_bits_fact(report: Report, variant: VariantResult) -> str:
    """Say that fewer bits than 8 gain nothing here; empty where there are none."""
    settings = report.config.get("quantize")
    if quantized_format(variant.precision) is None or not isinstance(settings, dict):
        return ""
    names = ("weights", "activations") if needs_ranges(variant.precision) else ("weights",)
    bits = {name: settings.get(f"{name[:-1]}-bits", 8) for name in names}
    low = [f"{number}-bit {name}" for name, number in bits.items() if number < 8]
    return f"{' and '.join(low)} gain no speed or size over 8 bits" if low else ""


def _accuracy_fact(report: Report, variant: VariantResult) -> str:
    accuracy = variant.accuracy
    change = meaningful_change(report, variant)
    if accuracy is None:
        return ""
    if change is not None:
        interval = fmt.change_with_interval(change, accuracy.half_width_pp, 1)
        return f"{metrics.primary_title(report)} {interval} pp"
    if accuracy.agreement is not None:
        things = AGREEING.get(accuracy.task, "images")
        return f"agrees with FP32 on {fmt.percent(accuracy.agreement)} % of the {things}"
    return "" if accuracy.sqnr_db is None else f"output SQNR {fmt.decibels(accuracy.sqnr_db)} dB"


def _objection(report: Report, variant: VariantResult) -> str:
    """Return the gate that a variant fails, or that it is inaccurate; empty if neither is known."""
    results = [gate for gate in report.gates if gate.variant == variant.name]
    if not results and variant.precision == "fp32":
        # Of the gates on the others, fp32 need not meet those that compare with it.
        limits = {g.name: g.limit for g in report.gates if g.name in ("max-latency", "max-size")}
        results = [evaluate_gate(report, variant, name, limit) for name, limit in limits.items()]
    if gate := next((gate for gate in results if not gate.passed), None):
        if gate.value is None:
            return f"`{variant.name}` fails {gate.name}, which was not measured"
        return f"`{variant.name}` fails {gate.name} ({describe_result(gate)})"
    if is_accurate(report, variant) is False:
        fact = _accuracy_fact(report, variant)
        return f"`{variant.name}` differs too much from FP32 ({fact})"
    return ""


def _measurement_notes(report: Report) -> Iterator[str]:
    """Yield the notes of measurements, each once for all the variants that share it.

    What concerns the images themselves is a note of the baseline.
    """
    baseline = report.baseline.notes if report.baseline is not None else ()
    yield from (note for note in sorted(set(baseline)) if note not in SHOWN_IN_TABLE)
    # One sentence about all doubtful timings; the JSON has a note for each.
    doubts = [
        (f"`{variant.name}` at batch {latency.batch}", note)
        for variant in report.variants
        for latency in variant.latency
        for note in latency.notes
    ]
    if doubts:
        sentence, reason = doubts[0]
        same = {timing for timing, note in doubts if note == reason} - {sentence}
        others = {timing for timing, _ in doubts} - same - {sentence}
        if same:
            sentence += f" (and {fmt.count(len(same), 'more timing')})"
        sentence += f": {reason}"
        if others:
            verb = "is" if len(others) == 1 else "are"
            sentence += f"; {fmt.count(len(others), 'more timing')} {verb} doubtful too"
        yield sentence
    names_by_note: dict[str, list[str]] = {}
    for variant in report.variants:
        accuracy_notes = variant.accuracy.notes if variant.accuracy is not None else ()
        for note in (*variant.notes, *accuracy_notes):
            names_by_note.setdefault(note, []).append(f"`{variant.name}`")
    for note, names in names_by_note.items():
        if note not in (*baseline, *SHOWN_IN_TABLE):
            yield f"{'; '.join(dict.fromkeys(names))}: {note}"


def _slow_integer_notes(report: Report) -> Iterator[str]:
    """Note where integers are not faster than a float precision, and the likely cause."""
    for variant in report.variants:
        latency = metrics.headline_latency(variant)
        if variant.precision not in FORMATS or latency is None:
            continue
        ms = summarize_latency(latency).median_ms
        faster = [
            (summarize_latency(timed).median_ms, other)
            for other in report.variants
            if other.backend == variant.backend
            and other.precision in FLOAT_PRECISIONS
            and (timed := metrics.latency_at(other, latency.batch, latency.where)) is not None
            and summarize_latency(timed).median_ms <= ms
        ]
        if not faster:
            continue
        acceptable = [pair for pair in faster if not _objection(report, pair[1])]
        float_ms, fastest = min(acceptable or faster, key=lambda pair: pair[0])
        if stores_weights_only(variant.precision):
            yield describe_saving(variant, ms, fastest, float_ms)
            continue
        left, candidates = variant.unquantized, variant.candidates
        if left:
            op, count = Counter(node.op for node in left).most_common(1)[0]
            why = Counter(node.reason for node in left if node.op == op).most_common(1)[0][0]
            example = next(node.node for node in left if (node.op, node.reason) == (op, why))
            reason = (
                f"because {len(left)} of {max(candidates, len(left))} operators are not quantized, "
                f"most of them {op} ({count}: {why}, as in `{example}`)"
            )
        else:
            all_of = (
                f"all {candidates} operators that could be are" if candidates else "its graph is"
            )
            reason = f"though {all_of} quantized"
        advice = f"ship `{fastest.name}`, or look" if acceptable else "look"
        yield (
            f"{format_title(variant.precision)} is not faster than {fastest.precision.upper()} on "
            f"`{variant.backend}` ({fmt.ms(ms)} against {fmt.ms(float_ms)} ms), "
            f"{reason}: {advice} with `qconvert inspect --quantized`"
        )


def _image_notes(report: Report) -> Iterator[str]:
    """Yield doubts about labels, preprocessing, and images that are too few or not independent."""
    if (score := _low_score(report)) is not None:
        is_right = f"is right on only {fmt.percent(score)} % of the images"
        if report.baseline is not None and report.baseline.task != "classify":
            is_right = f"has only {fmt.percent(score)} % of {metrics.primary_title(report)}"
        yield (
            f"the FP32 model {is_right}: check that "
            "`--preprocess` and the class numbers of the labels match its training"
        )
    prepared = report.evaluation.prepared if report.evaluation is not None else {}
    if prepared:
        names = [key for key, value in prepared.items() if value != report.preprocess.get(key)]
        yield (
            f"evaluation and calibration images were prepared differently ({', '.join(names)}): "
            "run `qconvert evaluate` without preprocessing options to measure what ships"
        )
    if report.shared_images:
        shared = fmt.count(report.shared_images, "image")
        yield (
            f"calibration and evaluation share {shared}, so the accuracy may look better than it "
            "is: evaluate on other images"
        )
    scored = [variant.accuracy for variant in report.variants if variant.accuracy is not None]
    # Where only some images have labels, top-1 rests on those.
    images = min((accuracy.labelled or accuracy.images for accuracy in scored), default=0)
    partly = any(a.labelled and a.labelled < a.images for a in scored)
    counted = fmt.count(images, "labelled image" if partly else "image")
    widest = max((accuracy.half_width_pp or 0.0 for accuracy in scored), default=0.0)
    if 0 < images < FEW_IMAGES:
        yield f"accuracy rests on {counted}: evaluate on {FEW_IMAGES} or more before trusting it"
    elif widest > 1.0:  # wider than most relevant differences
        needed = images * (widest / 0.5) ** 2
        digits = int(10 ** max(len(str(int(needed))) - 2, 0))
        yield (
            f"intervals are as wide as ± {widest:.1f} pp with {counted}: about "
            f"{int(-(-needed // digits) * digits)} would bring them to ± 0.5 pp"
        )


def _kernel_notes(report: Report) -> Iterator[str]:
    """Name the engines whose accuracy or speed was measured with other kernels."""
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
    for variant in report.variants:
        # ONNX Runtime has no FP16 kernels for x86 CPUs.
        in_float = set(variant.by_provider) == {"CPUExecutionProvider"}
        if variant.by_precision is not None:
            in_float = not variant.by_precision.get("fp16")
        if variant.precision == "fp16" and in_float:
            yield (
                f"`{variant.name}` is stored in half the bytes and computed in float32 here: "
                "ship it for its size, and another precision for speed"
            )


def is_accurate(report: Report, variant: VariantResult) -> bool | None:
    """Return whether the predictions are accurate enough; None where that is unknown."""
    judged = (gate for gate in report.gates if gate.name in SCORE_GATES and gate.value is not None)
    results = [gate.passed for gate in judged if gate.variant == variant.name]
    if results:
        return all(results)
    agreement = variant.accuracy.agreement if variant.accuracy is not None else None
    change = meaningful_change(report, variant)
    if agreement is None and change is None:
        # Fp32 is the reference: accurate unless it was measured and is not.
        return True if variant.precision == "fp32" else None
    return (agreement is not None and agreement >= MIN_AGREEMENT) or (
        change is not None and change >= -MAX_LOSS
    )


def meaningful_change(report: Report, variant: VariantResult) -> float | None:
    """Return the change of accuracy; None where FP32's own is low, as with wrong labels."""
    doubtful = _low_score(report) is not None
    return None if variant.accuracy is None or doubtful else variant.accuracy.change_pp


def _low_score(report: Report) -> float | None:
    """Return FP32's score in percent if it is so low that the labels may be wrong."""
    score = metrics.score_of(report.baseline, "primary")
    lowest = LOW_SCORES.get(report.baseline.task, 0.0) if report.baseline is not None else 0.0
    return score if score is not None and score < lowest else None
