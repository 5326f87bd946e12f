"""Limits that the user sets, judged on the point estimate; an interval is told and decides nothing.

What was not measured fails, unless the user lets it pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qconvert.core import number_format
from qconvert.core.config import GateConfig as Limits
from qconvert.core.errors import GateFailed
from qconvert.measure.accuracy import Accuracy
from qconvert.report import metrics
from qconvert.report.metrics import (
    NOT_TIMED_TOGETHER,
    missing_reason,
    missing_score_reason,
)
from qconvert.report.model import GateName, GateResult, Report, VariantResult

MIN_AGREEMENT = 97.0

MAX_TOP1_LOSS = 1.0

LOW_TOP1 = 25.0

FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")

ABSOLUTE_GATES = ("max-latency", "max-size")

# Scores are shares of counts: what lies on the limit must not fail by the last bit of a float.
TOLERANCE = 1e-9
PASS, FAIL = "pass", "FAIL"
NO_FP32 = "no fp32 engine of `{}` was timed in the same way"


@dataclass(frozen=True)
class GateValue:
    """What a limit is about; without a value `why` says why, with one what it was measured on."""

    value: float | None
    reason: str = ""
    half_width: float | None = None


@dataclass(frozen=True)
class GateRule:
    """How a limit is judged: what it reads, which side is good, and its words and unit."""

    measure: Callable[[Report, VariantResult], GateValue]
    sign: int
    message: str
    unit: str
    on_accuracy: bool = False


def evaluate_gates(report: Report, limits: Limits) -> tuple[GateResult, ...]:
    """Return a gate for every limit that is set and every engine but fp32.

    Fp32 is what the others are held against; it is judged only where nothing else was built.
    """
    others = tuple(each for each in report.variants if each.precision != "fp32")
    gates = []
    for name in RULES:
        limit: float | None = getattr(limits, name.replace("-", "_"))
        if limit is not None:
            gates += [
                evaluate_gate(report, each, name, limit) for each in others or report.variants
            ]
    if limits.allow_unmeasured:
        return tuple(_allow_unmeasured(gate) for gate in gates)
    return tuple(gates)


def require_passed(report: Report, *, shown: bool = False) -> None:
    """Raise where a gate failed; which ones is not told again where the report was shown."""
    failed = [describe_gate(each) for each in report.gates if not each.passed]
    if failed:
        some = "1 gate failed" if len(failed) == 1 else f"{len(failed)} gates failed"
        raise GateFailed(
            some, details=() if shown else failed, hint="the report's tables have all figures"
        )


def evaluate_gate(
    report: Report, variant: VariantResult, name: GateName, limit: float
) -> GateResult:
    """Hold one variant against one limit."""
    rule = RULES[name]
    found = rule.measure(report, variant)
    kept = found.value is not None and rule.sign * (found.value - limit) >= -TOLERANCE
    return GateResult(name, variant.name, found.value, limit, kept, found.reason, found.half_width)


def measures_accuracy(gate: GateResult) -> bool:
    """Say whether a gate has judged how right the answers are."""
    return RULES[gate.name].on_accuracy and gate.value is not None


def describe_gate(gate: GateResult) -> str:
    """Return what was found and what was allowed."""
    return f"{gate.name}: `{gate.variant}` {describe_result(gate)}"


def describe_result(gate: GateResult) -> str:
    """Return the sentence without its subject."""
    value, limit = format_gate(gate)
    if gate.value is None:
        return f"was not measured ({gate.why}), limit {limit}"
    on = f" ({gate.why})" if gate.why else ""
    return f"{RULES[gate.name].message.format(value)}{on}, limit {limit}"


def format_gate(gate: GateResult) -> tuple[str, str]:
    """Return value, with its interval, and limit; with the decimals it takes to tell them apart."""
    value, limit = number_format.value_and_limit(
        gate.limit if gate.value is None else gate.value, gate.limit
    )
    sides = "" if gate.half_width is None else f" ± {gate.half_width:.2f}"
    value = value.replace("-", "−")
    return "—" if gate.value is None else value + sides, limit + RULES[gate.name].unit


def _allow_unmeasured(gate: GateResult) -> GateResult:
    if gate.value is not None:
        return gate
    return GateResult(
        gate.name, gate.variant, None, gate.limit, True, f"{gate.why}; let pass unmeasured"
    )


def _drop(_: Report, variant: VariantResult) -> GateValue:
    accuracy = variant.accuracy
    if accuracy is None or accuracy.change_pp is None:
        return GateValue(None, missing_score_reason(variant, "change_pp"))
    # Subtracted from zero, so that no change is 0 and not -0.
    return GateValue(0.0 - accuracy.change_pp, _measured_on(accuracy), accuracy.half_width_pp)


def _agreement(_: Report, variant: VariantResult) -> GateValue:
    accuracy = variant.accuracy
    if accuracy is None or accuracy.agreement is None:
        return GateValue(None, missing_score_reason(variant, "agreement"))
    return GateValue(accuracy.agreement, _measured_on(accuracy))


def _measured_on(accuracy: Accuracy) -> str:
    return "its graph on the CPU" if accuracy.measured_on == "cpu-simulation" else ""


def _latency(_: Report, variant: VariantResult) -> GateValue:
    median = metrics.median_ms(variant)
    if median is None:
        return GateValue(None, missing_reason(variant, "latency"))
    return GateValue(median, _latency_conditions(variant))


def _speedup(report: Report, variant: VariantResult) -> GateValue:
    if metrics.headline_latency(variant) is None:
        return GateValue(None, missing_reason(variant, "latency"))
    ratio = metrics.headline_speedup(report, variant)
    if ratio is None:
        return GateValue(None, NO_FP32.format(variant.backend))
    return GateValue(ratio, _latency_conditions(variant))


def _latency_conditions(variant: VariantResult) -> str:
    """Say which of the latencies was judged, where there are several."""
    latency = metrics.headline_latency(variant)
    assert latency is not None
    places = {each.where for each in variant.latency}
    place = "whole call" if latency.where == "host" else "on the device"
    batch = [f"batch {latency.batch}"] if len({each.batch for each in variant.latency}) > 1 else []
    return ", ".join([*batch, place] if len(places) > 1 else batch)


def _size(_: Report, variant: VariantResult) -> GateValue:
    if variant.engine is None:
        return GateValue(None, missing_reason(variant))
    return GateValue(variant.engine.bytes / 1e6)


RULES: dict[GateName, GateRule] = {
    "max-drop": GateRule(_drop, -1, "lost {} pp of top-1", " pp", on_accuracy=True),
    "min-agreement": GateRule(_agreement, 1, "agrees with FP32 on {} %", " %", on_accuracy=True),
    "max-latency": GateRule(_latency, -1, "takes {} ms", " ms"),
    "min-speedup": GateRule(_speedup, 1, "is {} times as fast as fp32", "×"),
    "max-size": GateRule(_size, -1, "has {} MB", " MB"),
}


def best_variant(report: Report) -> VariantResult | None:
    """Return the fastest variant that keeps the limits and is known to answer well."""
    found = fastest_acceptable(report)
    if found is None or not is_accurate(report, found) or not_timed_with(report, found):
        return None
    return found


def not_timed_with(report: Report, found: VariantResult) -> list[str]:
    """Name the engines that one would only beat because they were not timed with it.

    Who takes fp32 wants to know all of them; who takes another, those that were timed once.
    """
    beside = [each for each in report.variants if each.backend == found.backend]
    idle = [each for each in beside if metrics.headline_latency(each) is None]
    if found.precision != "fp32":
        idle = [each for each in idle if each.unmeasured.get("latency") == NOT_TIMED_TOGETHER]
    return [each.name for each in idle if is_accurate(report, each) is not False]


def fastest_acceptable(report: Report) -> VariantResult | None:
    """Return the fastest variant that nothing speaks against, though its answers be unknown."""
    fitting = [
        variant
        for variant in report.variants
        if metrics.headline_latency(variant) is not None and is_acceptable(report, variant)
    ]
    return min(fitting, key=metrics.ms_per_image, default=None)


def is_acceptable(report: Report, variant: VariantResult) -> bool:
    """Say whether nothing speaks against a variant: no limit, and no answers that were judged."""
    return not any(failed_gates(report, variant)) and is_accurate(report, variant) is not False


def is_accurate(report: Report, variant: VariantResult) -> bool | None:
    """Say whether the answers are good enough; None where nobody looked."""
    judged = [g for g in report.gates if g.variant == variant.name and measures_accuracy(g)]
    if judged:
        return all(gate.passed for gate in judged)
    accuracy = variant.accuracy
    same = accuracy.agreement if accuracy is not None else None
    change = meaningful_top1_change(report, variant)
    if same is None and change is None:
        # What others are held against is good enough, unless it was looked at and is not.
        return True if variant.precision == "fp32" else None
    return (same is not None and same >= MIN_AGREEMENT) or (
        change is not None and change >= -MAX_TOP1_LOSS
    )


def meaningful_top1_change(report: Report, variant: VariantResult) -> float | None:
    """Return the change of top-1 where it tells anything: labels may be wrong, then it does not."""
    top1 = report.baseline.top1 if report.baseline is not None else None
    if variant.accuracy is None or (top1 is not None and top1 < LOW_TOP1):
        return None
    return variant.accuracy.change_pp


def failed_gates(report: Report, variant: VariantResult) -> Iterator[GateResult]:
    """Yield the limits not kept; fp32 is held against those that ask for no comparison."""
    own = [gate for gate in report.gates if gate.variant == variant.name]
    if not own and variant.precision == "fp32":
        wanted = {gate.name: gate.limit for gate in report.gates if gate.name in ABSOLUTE_GATES}
        own = [evaluate_gate(report, variant, name, limit) for name, limit in wanted.items()]
    return (gate for gate in own if not gate.passed)
