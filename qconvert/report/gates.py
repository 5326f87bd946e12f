"""The limits that the user sets, and which variant is the best within them.

Gates judge the point estimate; its interval is reported and decides nothing. An unmeasured value
fails its gate, unless the user allows that.

The best variant is the fastest that passes its gates and is accurate enough: by the gates on
accuracy where there are any, else with at least `MIN_AGREEMENT` percent of FP32's predictions or
at most `MAX_TOP1_LOSS` points of top-1 lost. Where FP32 itself has less than `LOW_TOP1` percent
there is nothing to lose, and only agreement counts.
"""

from dataclasses import dataclass, replace

from qconvert.core import number_format
from qconvert.core.config import GateConfig
from qconvert.core.errors import GateFailed
from qconvert.report import metrics
from qconvert.report.model import GateName, GateResult, Report, VariantResult

# Scores are shares of counts: a score on its limit must not fail by the last bit of a float.
TOLERANCE = 1e-9
PASS, FAIL = "pass", "FAIL"
MIN_AGREEMENT = 97.0
MAX_TOP1_LOSS = 1.0
LOW_TOP1 = 25.0
FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")
# Gates that compare with no fp32 engine, so that fp32 can fail them.
ABSOLUTE_GATES = ("max-latency", "max-size")


@dataclass(frozen=True)
class GateRule:
    """Whether more is better (+1) or less (-1), the sentence about a value, and its unit."""

    sign: int
    message: str
    unit: str
    on_accuracy: bool = False


GATE_RULES: dict[GateName, GateRule] = {
    "max-drop": GateRule(-1, "lost {} pp of top-1", " pp", on_accuracy=True),
    "min-agreement": GateRule(1, "agrees with FP32 on {} %", " %", on_accuracy=True),
    "max-latency": GateRule(-1, "takes {} ms", " ms"),
    "min-speedup": GateRule(1, "is {} times as fast as fp32", "×"),
    "max-size": GateRule(-1, "has {} MB", " MB"),
}


def evaluate_gates(report: Report, limits: GateConfig) -> tuple[GateResult, ...]:
    """Return a result for every limit that is set and every engine but fp32.

    Fp32 is what the others compare with; it is judged only where nothing else was built.
    """
    variants = [variant for variant in report.variants if variant.precision != "fp32"]
    results = []
    for name in GATE_RULES:
        limit: float | None = getattr(limits, name.replace("-", "_"))
        if limit is not None:
            results += [
                evaluate_gate(report, variant, name, limit)
                for variant in variants or report.variants
            ]
    if limits.allow_unmeasured:
        results = [
            replace(gate, passed=True, why=f"{gate.why}; allowed") if gate.value is None else gate
            for gate in results
        ]
    return tuple(results)


def evaluate_gate(
    report: Report, variant: VariantResult, name: GateName, limit: float
) -> GateResult:
    """Judge one variant by one limit."""
    value, note = _measure(report, variant, name)
    passed = value is not None and GATE_RULES[name].sign * (value - limit) >= -TOLERANCE
    half_width = None
    if name == "max-drop" and value is not None and variant.accuracy is not None:
        half_width = variant.accuracy.half_width_pp
    return GateResult(name, variant.name, value, limit, passed, note, half_width)


def _measure(report: Report, variant: VariantResult, name: GateName) -> tuple[float | None, str]:
    """Return the value that a gate judges and its conditions, or None and the reason."""
    if GATE_RULES[name].on_accuracy:
        accuracy, field = variant.accuracy, "change_pp" if name == "max-drop" else "agreement"
        score: float | None = getattr(accuracy, field, None)
        if accuracy is None or score is None:
            return None, metrics.missing_score_reason(variant, field)
        simulated = accuracy.measured_on == "cpu-simulation"
        # Subtracted from zero, so that no drop is 0 and not -0.
        score = 0.0 - score if name == "max-drop" else score
        return score, "its graph on the CPU" if simulated else ""
    if name == "max-size":
        size = variant.engine.bytes / 1e6 if variant.engine is not None else None
        return size, "" if size is not None else metrics.missing_reason(variant)
    latency = metrics.headline_latency(variant)
    if latency is None:
        return None, metrics.missing_reason(variant, "latency")
    ratio = metrics.headline_speedup(report, variant)
    if name == "min-speedup" and ratio is None:
        return None, f"no fp32 engine of `{variant.backend}` was timed in the same way"
    conditions = []
    if len({other.batch for other in variant.latency}) > 1:
        conditions.append(f"batch {latency.batch}")
    if len({other.where for other in variant.latency}) > 1:
        conditions.append("whole call" if latency.where == "host" else "on the device")
    value = ratio if name == "min-speedup" else metrics.median_ms(variant)
    return value, ", ".join(conditions)


def require_passed(report: Report, *, shown: bool = False) -> None:
    """Raise where a gate failed; list the failed ones unless the report was shown already."""
    failed = [describe_gate(gate) for gate in report.gates if not gate.passed]
    if failed:
        raise GateFailed(
            f"{number_format.count(len(failed), 'gate')} failed",
            details=() if shown else failed,
            hint="the tables of the report have all values",
        )


def describe_gate(gate: GateResult) -> str:
    """Return a sentence with the value and the limit."""
    return f"{gate.name}: `{gate.variant}` {describe_result(gate)}"


def describe_result(gate: GateResult) -> str:
    """Return the sentence without its subject."""
    value, limit = format_gate(gate)
    if gate.value is None:
        return f"was not measured ({gate.why}), limit {limit}"
    conditions = f" ({gate.why})" if gate.why else ""
    return f"{GATE_RULES[gate.name].message.format(value)}{conditions}, limit {limit}"


def format_gate(gate: GateResult) -> tuple[str, str]:
    """Return value with interval, and limit, with enough decimals to tell them apart."""
    value, limit = number_format.value_and_limit(
        gate.limit if gate.value is None else gate.value, gate.limit
    )
    interval = "" if gate.half_width is None else f" ± {gate.half_width:.2f}"
    text = "—" if gate.value is None else value.replace("-", "−") + interval
    return text, limit + GATE_RULES[gate.name].unit


def best_variant(report: Report) -> VariantResult | None:
    """Return the fastest variant that passes the gates and is known to be accurate."""
    variant = fastest_acceptable(report)
    if variant is None or not is_accurate(report, variant) or not_timed_with(report, variant):
        return None
    return variant


def fastest_acceptable(report: Report) -> VariantResult | None:
    """Return the fastest variant without a known failure, though its accuracy may be unknown."""
    acceptable = [
        variant
        for variant in report.variants
        if metrics.headline_latency(variant) is not None and is_acceptable(report, variant)
    ]
    return min(acceptable, key=metrics.ms_per_image, default=None)


def is_acceptable(report: Report, variant: VariantResult) -> bool:
    """Return whether a variant fails no gate and is not known to be inaccurate."""
    return not failed_gates(report, variant) and is_accurate(report, variant) is not False


def is_accurate(report: Report, variant: VariantResult) -> bool | None:
    """Return whether the predictions are accurate enough; None where that is unknown."""
    results = [
        gate.passed
        for gate in report.gates
        if gate.variant == variant.name
        and GATE_RULES[gate.name].on_accuracy
        and gate.value is not None
    ]
    if results:
        return all(results)
    agreement = variant.accuracy.agreement if variant.accuracy is not None else None
    change = meaningful_top1_change(report, variant)
    if agreement is None and change is None:
        # Fp32 is the reference: accurate unless it was measured and is not.
        return True if variant.precision == "fp32" else None
    return (agreement is not None and agreement >= MIN_AGREEMENT) or (
        change is not None and change >= -MAX_TOP1_LOSS
    )


def meaningful_top1_change(report: Report, variant: VariantResult) -> float | None:
    """Return the change of top-1; None where FP32's own top-1 is low, as with wrong labels."""
    top1 = report.baseline.top1 if report.baseline is not None else None
    if variant.accuracy is None or (top1 is not None and top1 < LOW_TOP1):
        return None
    return variant.accuracy.change_pp


def failed_gates(report: Report, variant: VariantResult) -> list[GateResult]:
    """Return the gates that a variant fails; fp32 is judged by the absolute ones too."""
    results = [gate for gate in report.gates if gate.variant == variant.name]
    if not results and variant.precision == "fp32":
        limits = {gate.name: gate.limit for gate in report.gates if gate.name in ABSOLUTE_GATES}
        results = [evaluate_gate(report, variant, name, limit) for name, limit in limits.items()]
    return [gate for gate in results if not gate.passed]


def not_timed_with(report: Report, variant: VariantResult) -> list[str]:
    """Name the engines that a variant only beats because they were not timed with it.

    To ship fp32 takes all engines of its backend; to ship another, those that were timed before.
    """
    untimed = [
        other
        for other in report.variants
        if other.backend == variant.backend and metrics.headline_latency(other) is None
    ]
    if variant.precision != "fp32":
        untimed = [
            other
            for other in untimed
            if other.unmeasured.get("latency") == metrics.NOT_TIMED_TOGETHER
        ]
    return [other.name for other in untimed if is_accurate(report, other) is not False]
