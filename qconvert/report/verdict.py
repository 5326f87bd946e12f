"""Which variant to ship, in one sentence, and how honest that can be.

The best is the fastest engine that keeps all limits and whose answers are good enough: by the
limits on answers where there are any, else as many as `ENOUGH` percent the same as those of FP32,
or at most `LOST` points of top-1 lost. Where FP32 itself is right on less than `LOW_TOP1` percent
there is nothing to lose, and only the first counts.
"""

from collections.abc import Iterator
from dataclasses import replace

from qconvert.core import number_format
from qconvert.core.config import GateConfig as Limits
from qconvert.measure.stats import summarize_latency
from qconvert.report import gates, metrics
from qconvert.report.gates import (
    FLOAT_PRECISIONS,
    best_variant,
    evaluate_gates,
    failed_gates,
    fastest_acceptable,
    is_accurate,
    meaningful_top1_change,
    not_timed_with,
)
from qconvert.report.metrics import NOT_MEASURED, missing_reason
from qconvert.report.model import Report, VariantResult
from qconvert.report.notes import collect_notes

INT8_NOT_FASTER = "INT8 is not faster here"


def verdict(report: Report) -> str:
    """Return the sentence."""
    if not any(metrics.headline_latency(variant) for variant in report.variants):
        return _nothing_timed(report)
    found = fastest_acceptable(report)
    if found is None:
        return _nothing_to_ship(report)
    if is_accurate(report, found) is None:
        return _accuracy_unknown(report, found)
    if waiting := not_timed_with(report, found):
        names = ", ".join(f"`{name}`" for name in waiting)
        return f"Not timed beside `{found.name}`: {names}; `qconvert bench RUN` times all in turns"
    against = _against_int8(report, found)
    lead = f"{against}, so ship" if against else "Ship"
    kept = _passed_gates(report, found)
    facts = ", ".join(_facts(report, found))
    return f"{lead} `{found.name}`: {'; '.join([facts, *kept, *_untimed_backends(report)])}"


def _facts(report: Report, variant: VariantResult) -> Iterator[str]:
    ratio = metrics.headline_speedup(report, variant)
    latency = metrics.headline_latency(variant)
    assert latency is not None
    if ratio is None or variant.precision == "fp32":
        yield f"{number_format.ms(summarize_latency(latency).median_ms)} ms at batch {latency.batch}"
    else:
        yield f"{number_format.ratio(ratio)} as fast as fp32"
    size = metrics.size_ratio(report, variant)
    if size is not None and variant.precision != "fp32":
        yield f"{size:.0%} of the size".replace("%", " %")
    if variant.precision != "fp32":
        yield from _accuracy_facts(report, variant)


def _accuracy_facts(report: Report, variant: VariantResult) -> Iterator[str]:
    accuracy = variant.accuracy
    if accuracy is None:
        return
    change = meaningful_top1_change(report, variant)
    if change is not None:
        yield f"top-1 {number_format.change_with_interval(change, accuracy.half_width_pp, 1)} pp"
    elif accuracy.agreement is not None:
        yield f"agrees with FP32 on {number_format.percent(accuracy.agreement)} % of the images"
    elif accuracy.sqnr_db is not None:
        yield f"output SQNR {number_format.decibels(accuracy.sqnr_db)} dB"


def _passed_gates(report: Report, variant: VariantResult) -> list[str]:
    if metrics.passes_gates(report, variant) is None:
        return []
    return ["all gates passed" if all(g.passed for g in report.gates) else "its gates passed"]


def _untimed_backends(report: Report) -> list[str]:
    """Name the backends that nothing was timed on."""
    backends: dict[str, bool] = {}
    for variant in report.variants:
        timed = metrics.headline_latency(variant) is not None
        backends[variant.backend] = timed or backends.get(variant.backend, False)
    absent = [f"`{name}`" for name, timed in backends.items() if not timed]
    return [f"nothing was timed on {', '.join(absent)}"] if absent else []


def _against_int8(report: Report, chosen: VariantResult) -> str:
    """Say why it is not the INT8 engine beside the one chosen."""
    for variant in report.variants:
        rival = variant.precision == "int8" and variant.backend == chosen.backend
        if not rival or variant is chosen or metrics.headline_latency(variant) is None:
            continue
        # A float engine may be faster and keep no limit: then it is no reason for another one.
        beaten = metrics.ms_per_image(chosen) <= metrics.ms_per_image(variant)
        if beaten and chosen.precision in FLOAT_PRECISIONS:
            return INT8_NOT_FASTER
        return _objection(report, variant)
    return ""


def _objection(report: Report, variant: VariantResult) -> str:
    failed = next(failed_gates(report, variant), None)
    if failed is not None and failed.value is None:
        return f"`{variant.name}` fails {failed.name}, which was not measured"
    if failed is not None:
        return f"`{variant.name}` fails {failed.name} ({gates.describe_result(failed)})"
    if is_accurate(report, variant) is False:
        return f"`{variant.name}` answers too differently ({', '.join(_accuracy_facts(report, variant))})"
    return ""


def _accuracy_unknown(report: Report, variant: VariantResult) -> str:
    facts = ", ".join(_facts(report, variant))
    if variant.accuracy is not None and variant.accuracy.sqnr_db is not None:
        return f"Ship `{variant.name}` if its answers are near enough for you: {facts}"
    return (
        f"`{variant.name}` is the fastest ({facts}), but no image judged it: "
        "`qconvert evaluate` does, with `--eval`"
    )


def _nothing_to_ship(report: Report) -> str:
    timed = [each for each in report.variants if metrics.headline_latency(each) is not None]
    others = [each for each in timed if each.precision != "fp32"]
    first = min(others or timed, key=metrics.ms_per_image)
    why = _objection(report, first)
    return f"Nothing here to ship: {why}, and no other engine does better"


def _compared_variants(report: Report) -> Iterator[VariantResult]:
    """Yield the variants whose answers say something beside FP32's."""
    others = (each for each in report.variants if each.precision != "fp32")
    return (each for each in others if any(_accuracy_facts(report, each)))


def _nothing_timed(report: Report) -> str:
    if not report.variants:
        return "Nothing was built"
    why = missing_reason(report.variants[0], "latency")
    if all(each.engine is None for each in report.variants):
        return f"Nothing was built ({why}): `qconvert build --from RUN` goes on"
    if why == NOT_MEASURED:
        told = [
            f"`{each.name}` {', '.join(_accuracy_facts(report, each))}"
            for each in _compared_variants(report)
        ]
        return f"Nothing was timed; answers: {'; '.join(told)}" if told else "Nothing was timed"
    return f"Nothing was timed ({why}): run `qconvert bench` where the engines work"


def conclude(report: Report, limits: Limits) -> Report:
    """Return the report with all that follows from its measurements; the same when done again."""
    judged = replace(report, gates=evaluate_gates(report, limits))
    judged = replace(judged, notes=collect_notes(judged))
    chosen = best_variant(judged)
    return replace(judged, best=chosen.name if chosen else "", verdict=verdict(judged))
