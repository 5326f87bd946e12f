"""The verdict: one sentence that names what to ship, or why nothing can be named."""

from collections.abc import Iterator
from dataclasses import replace

from qconvert.core import number_format
from qconvert.core.config import GateConfig
from qconvert.report import gates, metrics
from qconvert.report.model import Report, VariantResult
from qconvert.report.notes import collect_notes

INT8_NOT_FASTER = "INT8 is not faster here"


def conclude(report: Report, limits: GateConfig) -> Report:
    """Return the report with what follows from its measurements; repeating it changes nothing."""
    report = replace(report, gates=gates.evaluate_gates(report, limits))
    best = gates.best_variant(report)
    return replace(
        report, notes=collect_notes(report), best=best.name if best else "", verdict=verdict(report)
    )


def verdict(report: Report) -> str:
    """Return the sentence."""
    if not any(metrics.headline_latency(variant) for variant in report.variants):
        return _nothing_timed(report)
    variant = gates.fastest_acceptable(report)
    if variant is None:
        return _nothing_to_ship(report)
    facts = ", ".join(_facts(report, variant))
    if gates.is_accurate(report, variant) is None:
        if variant.accuracy is not None and variant.accuracy.sqnr_db is not None:
            return f"Ship `{variant.name}` if its output error is acceptable to you: {facts}"
        return (
            f"`{variant.name}` is the fastest ({facts}), but its accuracy is unknown: "
            "run `qconvert evaluate` with `--eval`"
        )
    if untimed := gates.not_timed_with(report, variant):
        names = ", ".join(f"`{name}`" for name in untimed)
        return (
            f"Not timed together with `{variant.name}`: {names}; "
            "`qconvert bench RUN` times all of them together"
        )
    objection = _int8_objection(report, variant)
    lead = f"{objection}, so ship" if objection else "Ship"
    if metrics.passes_gates(report, variant) is not None:
        all_passed = all(gate.passed for gate in report.gates)
        facts += "; all gates passed" if all_passed else "; its gates passed"
    timed = {v.backend for v in report.variants if metrics.headline_latency(v) is not None}
    untimed_backends = dict.fromkeys(
        f"`{v.backend}`" for v in report.variants if v.backend not in timed
    )
    if untimed_backends:
        facts += f"; nothing was timed on {', '.join(untimed_backends)}"
    return f"{lead} `{variant.name}`: {facts}"


def _facts(report: Report, variant: VariantResult) -> Iterator[str]:
    ratio = metrics.headline_speedup(report, variant)
    if ratio is None or variant.precision == "fp32":
        latency, median = metrics.headline_latency(variant), metrics.median_ms(variant)
        assert latency is not None
        assert median is not None
        yield f"{number_format.ms(median)} ms at batch {latency.batch}"
    else:
        yield f"{number_format.ratio(ratio)} as fast as fp32"
    size = metrics.size_ratio(report, variant)
    if size is not None and variant.precision != "fp32":
        yield f"{100 * size:.0f} % of the size"
    if variant.precision != "fp32":
        yield from _accuracy_facts(report, variant)


def _accuracy_facts(report: Report, variant: VariantResult) -> Iterator[str]:
    accuracy = variant.accuracy
    if accuracy is None:
        return
    change = gates.meaningful_top1_change(report, variant)
    if change is not None:
        yield f"top-1 {number_format.change_with_interval(change, accuracy.half_width_pp, 1)} pp"
    elif accuracy.agreement is not None:
        yield f"agrees with FP32 on {number_format.percent(accuracy.agreement)} % of the images"
    elif accuracy.sqnr_db is not None:
        yield f"output SQNR {number_format.decibels(accuracy.sqnr_db)} dB"


def _int8_objection(report: Report, chosen: VariantResult) -> str:
    """Say why the verdict is not the INT8 engine of the same backend."""
    for variant in report.variants:
        rival = variant.precision == "int8" and variant.backend == chosen.backend
        if not rival or variant is chosen or metrics.headline_latency(variant) is None:
            continue
        # A faster float engine that fails its gates is no reason for a third one.
        faster = metrics.ms_per_image(chosen) <= metrics.ms_per_image(variant)
        if faster and chosen.precision in gates.FLOAT_PRECISIONS:
            return INT8_NOT_FASTER
        return _objection(report, variant)
    return ""


def _objection(report: Report, variant: VariantResult) -> str:
    for gate in gates.failed_gates(report, variant):
        if gate.value is None:
            return f"`{variant.name}` fails {gate.name}, which was not measured"
        return f"`{variant.name}` fails {gate.name} ({gates.describe_result(gate)})"
    if gates.is_accurate(report, variant) is False:
        facts = ", ".join(_accuracy_facts(report, variant))
        return f"`{variant.name}` differs too much from FP32 ({facts})"
    return ""


def _nothing_to_ship(report: Report) -> str:
    timed = [v for v in report.variants if metrics.headline_latency(v) is not None]
    quantized = [variant for variant in timed if variant.precision != "fp32"]
    fastest = min(quantized or timed, key=metrics.ms_per_image)
    return f"Nothing to ship: {_objection(report, fastest)}, and no other engine does better"


def _nothing_timed(report: Report) -> str:
    if not report.variants:
        return "Nothing was built"
    reason = metrics.missing_reason(report.variants[0], "latency")
    if all(variant.engine is None for variant in report.variants):
        return f"Nothing was built ({reason}): `qconvert build --from RUN` continues"
    if reason != metrics.NOT_MEASURED:
        return f"Nothing was timed ({reason}): run `qconvert bench` where the engines work"
    compared = [
        f"`{variant.name}` {', '.join(facts)}"
        for variant in report.variants
        if variant.precision != "fp32" and (facts := [*_accuracy_facts(report, variant)])
    ]
    return (
        f"Nothing was timed; accuracy: {'; '.join(compared)}" if compared else "Nothing was timed"
    )
