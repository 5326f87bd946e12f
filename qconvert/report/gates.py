"""Gates: limits that the user sets for the engines of a report.

They check the point estimate; its interval is reported but not used. An unmeasured value fails its
gate, unless the user allows it.
"""

from dataclasses import replace

from qconvert.core import number_format as fmt
from qconvert.core.config import GateConfig
from qconvert.core.errors import GateFailed
from qconvert.report import metrics
from qconvert.report.model import GateName, GateResult, Report, VariantResult

PASS, FAIL = "pass", "FAIL"

# Whether more is better (+1) or less (-1), the sentence about a value, and its unit.
GATE_RULES: dict[GateName, tuple[int, str, str]] = {
    "max-drop": (-1, "lost {} pp of {}", " pp"),
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
    metric = metrics.primary_title(report) if name == "max-drop" else ""
    return GateResult(name, variant.name, value, limit, passed, note, half_width, metric)


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
            f"{fmt.count(len(failed), 'gate')} failed",
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
    sentence = GATE_RULES[gate.name][1].format(value, gate.metric or "top-1")
    return f"{sentence}{conditions}, limit {limit}"


def format_gate(gate: GateResult) -> tuple[str, str]:
    """Return value with interval, and limit, with enough decimals to tell them apart."""
    value, limit = fmt.value_and_limit(gate.limit if gate.value is None else gate.value, gate.limit)
    interval = "" if gate.half_width is None else f" ± {gate.half_width:.2f}"
    text = "—" if gate.value is None else value.replace("-", "−") + interval
    return text, limit + GATE_RULES[gate.name][2]
