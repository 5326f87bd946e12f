"""Limits that the user sets, judged on the point estimate; an interval is told and decides nothing.

What was not measured fails, unless the user lets it pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qconvert.config import Gate as Limits
from qconvert.errors import GateFailed
from qconvert.measure.accuracy import Accuracy
from qconvert.report import figures, numerals
from qconvert.report.model import Gate, GateName, Report, Variant
from qconvert.report.reasons import why_no_score, why_not

# Scores are shares of counts: what lies on the limit must not fail by the last bit of a float.
SLACK = 1e-9
PASS, FAIL = "pass", "FAIL"
NO_FP32 = "no fp32 engine of `{}` was timed in the same way"


@dataclass(frozen=True)
class Measured:
    """What a limit is about; without a value `why` says why, with one what it was measured on."""

    value: float | None
    why: str = ""
    half_width: float | None = None


@dataclass(frozen=True)
class Rule:
    """How a limit is judged: what it reads, which side is good, and its words and unit."""

    measure: Callable[[Report, Variant], Measured]
    side: int
    words: str
    unit: str
    about_answers: bool = False


def judge(report: Report, limits: Limits) -> tuple[Gate, ...]:
    """Return a gate for every limit that is set and every engine but fp32.

    Fp32 is what the others are held against; it is judged only where nothing else was built.
    """
    others = tuple(each for each in report.variants if each.precision != "fp32")
    gates = []
    for name in RULES:
        limit: float | None = getattr(limits, name.replace("-", "_"))
        if limit is not None:
            gates += [judged(report, each, name, limit) for each in others or report.variants]
    if limits.allow_unmeasured:
        return tuple(_let_pass(gate) for gate in gates)
    return tuple(gates)


def require(report: Report, *, shown: bool = False) -> None:
    """Raise where a gate failed; which ones is not told again where the report was shown."""
    failed = [sentence(each) for each in report.gates if not each.passed]
    if failed:
        some = "1 gate failed" if len(failed) == 1 else f"{len(failed)} gates failed"
        raise GateFailed(
            some, details=() if shown else failed, hint="the report's tables have all figures"
        )


def judged(report: Report, variant: Variant, name: GateName, limit: float) -> Gate:
    """Hold one variant against one limit."""
    rule = RULES[name]
    found = rule.measure(report, variant)
    kept = found.value is not None and rule.side * (found.value - limit) >= -SLACK
    return Gate(name, variant.name, found.value, limit, kept, found.why, found.half_width)


def of_answers(gate: Gate) -> bool:
    """Say whether a gate has judged how right the answers are."""
    return RULES[gate.name].about_answers and gate.value is not None


def sentence(gate: Gate) -> str:
    """Return what was found and what was allowed."""
    return f"{gate.name}: `{gate.variant}` {finding(gate)}"


def finding(gate: Gate) -> str:
    """Return the sentence without its subject."""
    value, limit = written(gate)
    if gate.value is None:
        return f"was not measured ({gate.why}), limit {limit}"
    on = f" ({gate.why})" if gate.why else ""
    return f"{RULES[gate.name].words.format(value)}{on}, limit {limit}"


def written(gate: Gate) -> tuple[str, str]:
    """Return value, with its interval, and limit; with the decimals it takes to tell them apart."""
    value, limit = numerals.beside(gate.limit if gate.value is None else gate.value, gate.limit)
    sides = "" if gate.half_width is None else f" ± {gate.half_width:.2f}"
    value = value.replace("-", "−")
    return "—" if gate.value is None else value + sides, limit + RULES[gate.name].unit


def _let_pass(gate: Gate) -> Gate:
    if gate.value is not None:
        return gate
    return Gate(gate.name, gate.variant, None, gate.limit, True, f"{gate.why}; let pass unmeasured")


def _drop(_: Report, variant: Variant) -> Measured:
    accuracy = variant.accuracy
    if accuracy is None or accuracy.change_pp is None:
        return Measured(None, why_no_score(variant, "change_pp"))
    # Subtracted from zero, so that no change is 0 and not -0.
    return Measured(0.0 - accuracy.change_pp, _place(accuracy), accuracy.half_width_pp)


def _agreement(_: Report, variant: Variant) -> Measured:
    accuracy = variant.accuracy
    if accuracy is None or accuracy.agreement is None:
        return Measured(None, why_no_score(variant, "agreement"))
    return Measured(accuracy.agreement, _place(accuracy))


def _place(accuracy: Accuracy) -> str:
    return "its graph on the CPU" if accuracy.measured_on == "cpu-simulation" else ""


def _latency(_: Report, variant: Variant) -> Measured:
    median = figures.median_ms(variant)
    if median is None:
        return Measured(None, why_not(variant, "latency"))
    return Measured(median, _how(variant))


def _speedup(report: Report, variant: Variant) -> Measured:
    if figures.headline(variant) is None:
        return Measured(None, why_not(variant, "latency"))
    ratio = figures.headline_speedup(report, variant)
    if ratio is None:
        return Measured(None, NO_FP32.format(variant.backend))
    return Measured(ratio, _how(variant))


def _how(variant: Variant) -> str:
    """Say which of the latencies was judged, where there are several."""
    latency = figures.headline(variant)
    assert latency is not None
    places = {each.where for each in variant.latency}
    place = "whole call" if latency.where == "host" else "on the device"
    batch = [f"batch {latency.batch}"] if len({each.batch for each in variant.latency}) > 1 else []
    return ", ".join([*batch, place] if len(places) > 1 else batch)


def _size(_: Report, variant: Variant) -> Measured:
    if variant.engine is None:
        return Measured(None, why_not(variant))
    return Measured(variant.engine.bytes / 1e6)


RULES: dict[GateName, Rule] = {
    "max-drop": Rule(_drop, -1, "lost {} pp of top-1", " pp", about_answers=True),
    "min-agreement": Rule(_agreement, 1, "agrees with FP32 on {} %", " %", about_answers=True),
    "max-latency": Rule(_latency, -1, "takes {} ms", " ms"),
    "min-speedup": Rule(_speedup, 1, "is {} times as fast as fp32", "×"),
    "max-size": Rule(_size, -1, "has {} MB", " MB"),
}
