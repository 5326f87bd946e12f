"""The limits that the user sets, and the variants that meet them.

Gates check the point estimate; its interval is reported but not used. An unmeasured value fails its
gate, unless the user allows it.

A variant is accurate by the gates on accuracy where there are any, else with at least
`MIN_AGREEMENT` percent of FP32's predictions or at most `MAX_TOP1_LOSS` points of top-1 lost. Where
FP32 itself has less than `LOW_TOP1` percent, only agreement counts.
"""

from dataclasses import replace

from qconvert.core import number_format
from qconvert.core.config import GateConfig
from qconvert.core.errors import GateFailed
from qconvert.report import metrics
from qconvert.report.model import GateName, GateResult, Report, VariantResult

PASS, FAIL = "pass", "FAIL"
MIN_AGREEMENT = 97.0
MAX_TOP1_LOSS = 1.0
LOW_TOP1 = 25.0
FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")

# Whether more is better (+1) or less (-1), the sentence about a value, and its unit.
GATE_RULES: dict[GateName, tuple[int, str, str]] = {
    "max-drop": (-1, "lost {} pp of top-1", " pp"),
    "min-agreement": (1, "agrees with FP32 on {} %", " %"),
    "max-latency": (-1, "takes {} ms", " ms"),
    "min-speedup": (1, "is {} times as fast as fp32", "×"),
    "max-size": (-1, "has {} MB", " MB"),
}
SCORE_GATES = {"max-drop": "change_pp", "min-agreement": "agreement"}


def evaluate_gates(report: Report, limits: GateConfig) -> tuple[GateResult, ...]:
    """Return a result for every limit that is set and every engine but fp32.

    FP32 is the reference of the others; it is checked only where nothing else was built.
    """
    variants = [variant for variant in report.variants if variant.precision != "fp32"]
    results = []
    for name in GATE_RULES:
        limit: float | None = getattr(limits, name.replace("-", "_"))
        if limit is None:
            continue
        for variant in variants or report.variants:
            gate = evaluate_gate(report, variant, name, limit)
            if limits.allow_unmeasured and gate.value is None:
                gate = replace(gate, passed=True, why=f"{gate.why}; allowed")
            results.append(gate)
    return tuple(results)


def evaluate_gate(
    report: Report, variant: VariantResult, name: GateName, limit: float
) -> GateResult:
    """Check one variant against one limit."""
    value, note = _measure(report, variant, name)
    # Scores are shares of counts: a score on its limit must not fail by the last bit.
    passed = value is not None and GATE_RULES[name][0] * (value - limit) >= -1e-9
    half_width = None
    if name == "max-drop" and value is not None and variant.accuracy is not None:
        half_width = variant.accuracy.half_width_pp
    return GateResult(name, variant.name, value, limit, passed, note, half_width)


def _measure(report: Report, variant: VariantResult, name: GateName) -> tuple[float | None, str]:
    """Return the value that a gate checks and its conditions, or None and the reason."""
    if name in SCORE_GATES:
        accuracy, field = variant.accuracy, SCORE_GATES[name]
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
    value = metrics.median_ms(variant)
    if name == "min-speedup":
        value = metrics.speedup(report, variant, latency)
        if value is None:
            return None, f"no fp32 engine of `{variant.backend}` was timed in the same way"
    conditions = []
    if len({other.batch for other in variant.latency}) > 1:
        conditions.append(f"batch {latency.batch}")
    if len({other.where for other in variant.latency}) > 1:
        conditions.append("whole call" if latency.where == "host" else "on the device")
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
    return f"{GATE_RULES[gate.name][1].format(value)}{conditions}, limit {limit}"


def format_gate(gate: GateResult) -> tuple[str, str]:
    """Return value with interval, and limit, with enough decimals to tell them apart."""
    value, limit = number_format.value_and_limit(
        gate.limit if gate.value is None else gate.value, gate.limit
    )
    interval = "" if gate.half_width is None else f" ± {gate.half_width:.2f}"
    text = "—" if gate.value is None else value.replace("-", "−") + interval
    return text, limit + GATE_RULES[gate.name][2]


def is_acceptable(report: Report, variant: VariantResult) -> bool:
    """Return whether a variant fails no gate and is not known to be inaccurate."""
    return not failed_gates(report, variant) and is_accurate(report, variant) is not False


def is_accurate(report: Report, variant: VariantResult) -> bool | None:
    """Return whether the predictions are accurate enough; None where that is unknown."""
    judged = (gate for gate in report.gates if gate.name in SCORE_GATES and gate.value is not None)
    results = [gate.passed for gate in judged if gate.variant == variant.name]
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
    doubtful = top1 is not None and top1 < LOW_TOP1
    return None if variant.accuracy is None or doubtful else variant.accuracy.change_pp


def failed_gates(report: Report, variant: VariantResult) -> list[GateResult]:
    """Return the gates that a variant fails; fp32 by those that compare with no fp32 engine too."""
    results = [gate for gate in report.gates if gate.variant == variant.name]
    if not results and variant.precision == "fp32":
        limits = {g.name: g.limit for g in report.gates if g.name in ("max-latency", "max-size")}
        results = [evaluate_gate(report, variant, name, limit) for name, limit in limits.items()]
    return [gate for gate in results if not gate.passed]
