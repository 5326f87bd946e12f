"""Gates check the point estimate; an unmeasured value fails unless allowed."""

from dataclasses import replace
from typing import Any

import pytest

from qconvert.core.config import GateConfig as Limits
from qconvert.report import gates
from qconvert.report.model import GateResult
from tests.report import reports


def test_no_limits_give_no_gates() -> None:
    assert gates.evaluate_gates(reports.measured(), Limits()) == ()


def test_fp32_is_not_gated_beside_other_engines() -> None:
    results = gates.evaluate_gates(reports.simulated(), Limits(max_drop=1.0, max_size=100.0))
    assert {gate.variant for gate in results} == {
        "cpu-fp16",
        "cpu-int8",
        "tensorrt-rtx-fp16",
        "tensorrt-rtx-int8",
    }


def test_fp32_is_gated_if_it_is_the_only_engine() -> None:
    fp32, *_ = reports.cpu()
    (gate,) = gates.evaluate_gates(reports.report(fp32), Limits(max_latency=20.0))
    assert (gate.variant, gate.value, gate.passed) == ("cpu-fp32", 24.0, False)


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
def test_value_on_the_limit_passes(name: str, exact: Any, too_strict: Any) -> None:
    assert _int8(replace(Limits(), **{name: exact})).passed
    assert not _int8(replace(Limits(), **{name: too_strict})).passed


def test_rounding_error_does_not_fail_a_gate() -> None:
    drop = 100 * (1 - 297 / 300)
    report = reports.with_int8(accuracy=reports.scored(87.0, -(drop + 1e-14)))
    assert gates.evaluate_gates(report, Limits(max_drop=1.0))[-1].passed


def test_gain_and_no_change_pass_a_drop_limit_of_zero() -> None:
    for change in (0.0, 0.7):
        report = reports.with_int8(accuracy=reports.scored(89.0, change))
        gate = gates.evaluate_gates(report, Limits(max_drop=0.0))[-1]
        assert gate.passed
        assert gate.value == -change
        assert str(gate.value) != "-0.0"


def test_interval_is_reported_and_does_not_decide() -> None:
    gate = _int8(Limits(max_drop=0.5))
    assert gate.half_width == 1.12
    assert gate.passed
    assert gates.describe_gate(gate) == (
        "max-drop: `cpu-int8` lost 0.33 ± 1.12 pp of top-1, limit 0.50 pp"
    )


def test_unmeasured_value_fails_with_its_reason_unless_allowed() -> None:
    gate = _rtx(Limits(max_latency=5.0))
    assert (gate.value, gate.passed, gate.why) == (None, False, reports.NO_GPU)
    assert gates.describe_gate(gate) == (
        "max-latency: `tensorrt-rtx-int8` was not measured (no RTX GPU here), limit 5.00 ms"
    )
    allowed = _rtx(Limits(max_latency=5.0, allow_unmeasured=True))
    assert (allowed.passed, allowed.why) == (True, "no RTX GPU here; allowed")
    assert not _int8(Limits(max_latency=5.0, allow_unmeasured=True)).passed


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(max_drop=1.0), "need labels"),
        (Limits(min_speedup=2.0), ""),
        (Limits(min_agreement=99.9), ""),
    ],
)
def test_unlabelled_images_leave_only_the_drop_unmeasured(limits: Limits, why: str) -> None:
    gate = gates.evaluate_gates(reports.unlabelled(), limits)[-1]
    assert why in gate.why
    assert (gate.value is None) == bool(why)


def test_gate_without_speedup_or_engine_is_unmeasured() -> None:
    int8 = reports.cpu()[2]
    (gate,) = gates.evaluate_gates(reports.report(int8), Limits(min_speedup=2.0))
    assert (gate.value, gate.why) == (None, "no fp32 engine of `cpu` was timed in the same way")
    gone = replace(int8, engine=None, unmeasured={"engine": "out of memory"})
    (gate,) = gates.evaluate_gates(reports.report(gone), Limits(max_size=5.0))
    assert (gate.passed, gate.why) == (False, "out of memory")


def test_nan_fails_its_gate() -> None:
    report = reports.with_int8(accuracy=reports.scored(88.0, float("nan")))
    assert not gates.evaluate_gates(report, Limits(max_drop=1.0))[-1].passed


def test_simulated_accuracy_is_named_in_the_gate() -> None:
    assert _rtx(Limits(max_drop=1.0)).why == "its graph on the CPU"


def test_gate_names_the_batch_size_if_there_are_several() -> None:
    assert _int8(Limits(max_latency=10.0)).why == "batch 1"
    once = replace(reports.cpu()[2], latency=(reports.timing(10.0),))
    assert gates.evaluate_gates(reports.report(once), Limits(max_latency=10.0))[0].why == ""


def _int8(limits: Limits) -> GateResult:
    return gates.evaluate_gates(reports.measured(), limits)[-1]


def _rtx(limits: Limits) -> GateResult:
    return gates.evaluate_gates(reports.simulated(), limits)[-1]
