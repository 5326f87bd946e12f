"""Limits are judged on the point estimate; what was not measured fails unless it may pass."""

from dataclasses import replace
from typing import Any

import pytest

from qconvert.core.config import GateConfig as Limits
from qconvert.report import gates
from qconvert.report.model import GateResult, VariantResult
from tests.report import reports


def test_without_limits_nothing_is_judged() -> None:
    assert gates.evaluate_gates(reports.measured(), Limits()) == ()


def test_fp32_is_what_others_are_held_against() -> None:
    found = gates.evaluate_gates(reports.simulated(), Limits(max_drop=1.0, max_size=100.0))
    assert {gate.variant for gate in found} == {
        "cpu-fp16",
        "cpu-int8",
        "tensorrt-rtx-fp16",
        "tensorrt-rtx-int8",
    }


def test_fp32_is_judged_where_nothing_else_was_built() -> None:
    fp32, *_ = reports.cpu()
    (found,) = gates.evaluate_gates(reports.report(fp32), Limits(max_latency=20.0))
    assert (found.variant, found.value, found.passed) == ("cpu-fp32", 24.0, False)


# The INT8 engine loses 0.33 pp, agrees on 98.5 %, takes 10 ms, 2.4 times as fast, in 5.05 MB.
@pytest.mark.parametrize(
    ("name", "exact", "too_strict"),
    [
        ("max_drop", 0.33, 0.32),
        ("min_agreement", 98.5, 98.51),
        ("max_latency", 10.0, 9.99),
        ("min_speedup", 2.4, 2.41),
        ("max_size", 5.05, 5.04),
    ],
)
def test_what_lies_exactly_on_the_limit_passes(name: str, exact: Any, too_strict: Any) -> None:
    assert _int8(replace(Limits(), **{name: exact})).passed
    assert not _int8(replace(Limits(), **{name: too_strict})).passed


def test_the_last_bit_of_a_float_decides_nothing() -> None:
    drop = 100 * (1 - 297 / 300)
    report = reports.with_int8(accuracy=reports.scored(87.0, -(drop + 1e-14)))
    assert gates.evaluate_gates(report, Limits(max_drop=1.0))[-1].passed


def test_a_gain_and_no_change_keep_any_drop() -> None:
    for change in (0.0, 0.7):
        report = reports.with_int8(accuracy=reports.scored(89.0, change))
        found = gates.evaluate_gates(report, Limits(max_drop=0.0))[-1]
        assert found.passed
        assert found.value == -change
        assert str(found.value) != "-0.0"


def test_the_interval_is_told_and_does_not_decide() -> None:
    found = _int8(Limits(max_drop=0.5))
    assert found.half_width == 1.12
    assert found.passed
    assert gates.describe_gate(found) == (
        "max-drop: `cpu-int8` lost 0.33 ± 1.12 pp of top-1, limit 0.50 pp"
    )


def test_what_was_not_measured_fails_with_the_reason() -> None:
    found = _rtx(Limits(max_latency=5.0))
    assert (found.value, found.passed, found.why) == (None, False, reports.NO_GPU)
    assert gates.describe_gate(found) == (
        "max-latency: `tensorrt-rtx-int8` was not measured (no RTX GPU here), limit 5.00 ms"
    )


def test_what_was_not_measured_may_be_let_pass() -> None:
    found = _rtx(Limits(max_latency=5.0, allow_unmeasured=True))
    assert found.passed
    assert found.why == "no RTX GPU here; allowed"
    assert not _int8(Limits(max_latency=5.0, allow_unmeasured=True)).passed


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(max_drop=1.0), "need labels"),
        (Limits(min_speedup=2.0), ""),
        (Limits(min_agreement=99.9), ""),
    ],
)
def test_without_labels_only_the_drop_is_unknown(limits: Limits, why: str) -> None:
    found = gates.evaluate_gates(reports.unlabelled(), limits)[-1]
    assert why in found.why
    assert (found.value is None) == bool(why)


def test_speed_that_compares_with_nothing_is_not_measured() -> None:
    *_, int8 = reports.cpu()
    (found,) = gates.evaluate_gates(reports.report(int8), Limits(min_speedup=2.0))
    assert found.value is None
    assert found.why == "no fp32 engine of `cpu` was timed in the same way"


def test_an_engine_that_was_not_built_has_no_size() -> None:
    gone = VariantResult("cpu-int8", "cpu", "int8", None, unmeasured={"engine": "out of memory"})
    (found,) = gates.evaluate_gates(reports.report(gone), Limits(max_size=5.0))
    assert (found.passed, found.why) == (False, "out of memory")


def test_nan_never_passes() -> None:
    report = reports.with_int8(accuracy=reports.scored(88.0, float("nan")))
    assert not gates.evaluate_gates(report, Limits(max_drop=1.0))[-1].passed


def test_a_verdict_by_simulation_says_so() -> None:
    assert _rtx(Limits(max_drop=1.0)).why == "its graph on the CPU"


def test_it_says_which_of_several_latencies_was_judged() -> None:
    assert _int8(Limits(max_latency=10.0)).why == "batch 1"
    once = replace(reports.cpu()[2], latency=(reports.took(10.0),))
    assert gates.evaluate_gates(reports.report(once), Limits(max_latency=10.0))[0].why == ""


def _int8(limits: Limits) -> GateResult:
    return gates.evaluate_gates(reports.measured(), limits)[-1]


def _rtx(limits: Limits) -> GateResult:
    return gates.evaluate_gates(reports.simulated(), limits)[-1]
