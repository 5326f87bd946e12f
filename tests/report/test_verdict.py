"""The verdict names the variant to deploy, or says that none should be."""

from dataclasses import replace
from typing import Any

import pytest

from qconvert.core.config import GateConfig
from qconvert.measure.latency import Latency
from qconvert.report import metrics
from qconvert.report.metrics import NOT_TIMED_TOGETHER
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report import reports

NONE = GateConfig()
INACCURATE = reports.scored(80.0, -8.3, 2.0, agreement=90.0)


def with_every(**more: Any) -> Report:
    """Return the measured run with changes to every engine."""
    return reports.report(*(replace(variant, **more) for variant in reports.cpu()))


def case(name: str, report: Report, best: str, verdict: str, **limits: Any) -> Any:
    return pytest.param(report, GateConfig(**limits), best, verdict, id=name)


@pytest.mark.parametrize(
    ("report", "limits", "best", "verdict"),
    [
        case(
            "fastest accurate variant ships",
            reports.measured(),
            "cpu-int8",
            "Ship `cpu-int8`: 2.40× as fast as fp32, 27 % of the size, top-1 −0.3 ± 1.1 pp",
        ),
        case(
            "slower INT8 does not ship",
            reports.with_int8(latency=(reports.timing(30.0),)),
            "cpu-fp32",
            "INT8 is not faster here, so ship `cpu-fp32`: 24.00 ms at batch 1",
        ),
        case(
            "inaccurate INT8 does not ship",
            reports.with_int8(accuracy=INACCURATE),
            "cpu-fp32",
            "`cpu-int8` differs too much from FP32 (top-1 −8.3 ± 2.0 pp), so ship `cpu-fp32`: "
            "24.00 ms at batch 1",
        ),
        case(
            "nothing ships if every variant is inaccurate",
            with_every(accuracy=INACCURATE),
            "",
            "Nothing to ship: `cpu-int8` differs too much from FP32 (top-1 −8.3 ± 2.0 pp), and no "
            "other engine does better",
        ),
        case(
            "inaccurate FP32 alone does not ship",
            reports.report(replace(reports.cpu()[0], accuracy=INACCURATE)),
            "",
            "Nothing to ship: `cpu-fp32` differs too much from FP32 (top-1 −8.3 ± 2.0 pp), and no "
            "other engine does better",
        ),
        case(
            "failed gate is named",
            reports.measured(),
            "cpu-fp32",
            "`cpu-int8` fails max-drop (lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp), so ship "
            "`cpu-fp32`: 24.00 ms at batch 1",
            max_drop=0.2,
        ),
        case(
            "nothing ships if every variant fails a gate",
            reports.measured(),
            "",
            "Nothing to ship: `cpu-int8` fails max-latency (takes 10.00 ms (batch 1), limit "
            "5.00 ms), and no other engine does better",
            max_latency=5.0,
        ),
        case(
            "unmeasured gate fails",
            reports.unlabelled(),
            "cpu-fp32",
            "`cpu-int8` fails max-drop, which was not measured, so ship `cpu-fp32`: 24.00 ms at "
            "batch 1",
            max_drop=1.0,
        ),
        case(
            "untimed engines keep FP32 from being the best",
            reports.with_int8(latency=()),
            "",
            "Not timed together with `cpu-fp32`: `cpu-int8`; `qconvert bench RUN` times all of "
            "them together",
        ),
        case(
            "no evaluation recommends nothing",
            reports.unrated(),
            "",
            "`cpu-int8` is the fastest (2.40× as fast as fp32, 27 % of the size), but its accuracy "
            "is unknown: run `qconvert evaluate` with `--eval`",
        ),
        case(
            "output error alone leaves the decision to the user",
            reports.regression(),
            "",
            "Ship `cpu-int8` if its output error is acceptable to you: 2.40× as fast as fp32, "
            "27 % of the size, output SQNR 24.1 dB",
        ),
        case(
            "no latency gives the reason",
            reports.report(*reports.simulated().variants[3:]),
            "",
            "Nothing was timed (no RTX GPU here): run `qconvert bench` where the engines work",
        ),
        case(
            "no latency by request gives the accuracies",
            with_every(latency=()),
            "",
            "Nothing was timed; accuracy: `cpu-fp16` top-1 0.0 ± 0.0 pp; "
            "`cpu-int8` top-1 −0.3 ± 1.1 pp",
        ),
        case("no measurement", with_every(latency=(), accuracy=None), "", "Nothing was timed"),
        case(
            "plan says how to continue",
            with_every(latency=(), engine=None),
            "",
            "Nothing was built (not measured in this run): `qconvert build --from RUN` continues",
        ),
        case("empty run", reports.report(), "", "Nothing was built"),
    ],
)
def test_verdict_names_best_variant(
    report: Report, limits: GateConfig, best: str, verdict: str
) -> None:
    concluded = conclude(report, limits)
    assert (concluded.best, concluded.verdict) == (best, verdict)


@pytest.mark.parametrize(
    ("report", "limits", "ending"),
    [
        (reports.measured(), GateConfig(max_drop=1.0), "; all gates passed"),
        (reports.measured(), GateConfig(max_drop=1.0, min_speedup=2.0), "; its gates passed"),
        (reports.simulated(), NONE, "; nothing was timed on `tensorrt-rtx`"),
        (reports.unlabelled(), NONE, "agrees with FP32 on 98.50 % of the images"),
        (reports.one_image(), GateConfig(max_drop=1.0), ", top-1 0.0 pp; all gates passed"),
    ],
)
def test_verdict_ends_with_gates_and_untimed_backends(
    report: Report, limits: GateConfig, ending: str
) -> None:
    concluded = conclude(report, limits)
    assert concluded.best == "cpu-int8"
    assert concluded.verdict.endswith(ending)


def on_cpu_class(name: str, ms: float) -> Report:
    """Return the measured run with an INT8 latency, as timed on a CPU of a class."""
    machine = {"cpu": "Some CPU", "int8 instructions": name}
    engine = reports.cpu_engine("unsigned")
    report = reports.with_int8(latency=(reports.timing(ms),), engine=engine)
    return replace(report, machine=machine)


def test_verdict_says_that_the_recorded_cpu_limits_int8() -> None:
    slow = "INT8 is not faster on this CPU (AVX2 without VNNI), so ship `cpu-fp32`: 24.00 ms"
    assert conclude(on_cpu_class("AVX2 without VNNI", 25.0), NONE).verdict.startswith(slow)
    for name in ("AVX-512 VNNI", "unknown", ""):
        concluded = conclude(on_cpu_class(name, 25.0), NONE)
        assert concluded.verdict.startswith("INT8 is not faster here, so ship `cpu-fp32`")


@pytest.mark.parametrize("ms", [25.0, 8.0])
def test_dynamic_int8_ships_only_where_it_is_faster(ms: float) -> None:
    fp32, fp16, int8 = reports.cpu()
    dynamic = replace(
        int8, name="cpu-int8-dynamic", precision="int8-dynamic", latency=(reports.timing(ms),)
    )
    concluded = conclude(reports.report(fp32, fp16, dynamic), NONE)
    slow = "dynamic INT8 is not faster than FP32 on `cpu` (25.00 against 24.00 ms), because 2 of 60"
    assert any(note.startswith(slow) for note in concluded.notes) == (ms > 24)
    if ms > 24:
        assert concluded.best == "cpu-fp32"
        assert concluded.verdict.startswith("Dynamic INT8 is not faster here, so ship `cpu-fp32`")
    else:
        assert concluded.best == "cpu-int8-dynamic"
        both = conclude(reports.report(fp32, fp16, int8, dynamic), NONE)
        assert both.best == "cpu-int8-dynamic"


def test_nothing_slower_than_fp32_ships() -> None:
    # The medians say 1.01 times as fast; the rounds, which share what the machine did, 0.97.
    samples = ((20.0, 24.0, 28.0), (20.6, 23.8, 28.9))
    rows = [
        replace(row, latency=(Latency(1, "host", row_samples),))
        for row, row_samples in zip(reports.cpu()[::2], samples, strict=True)
    ]
    concluded = conclude(reports.report(*rows), NONE)
    ratio = metrics.headline_speedup(concluded, concluded.variants[1])
    assert ratio is not None
    assert ratio < 1
    assert concluded.best == "cpu-fp32"
    assert concluded.verdict.startswith("INT8 is not faster here, so ship `cpu-fp32`")


def test_slower_engine_ships_only_where_fp32_does_not_and_says_why() -> None:
    slow = reports.with_int8(latency=(reports.timing(26.0),))
    concluded = conclude(slow, GateConfig(max_size=10.0))
    assert concluded.best == "cpu-fp16"  # 25 ms
    assert concluded.verdict.startswith(
        "`cpu-fp32` fails max-size (has 18.70 MB, limit 10.00 MB), so ship `cpu-fp16`: 0.96×"
    )


@pytest.mark.parametrize(("ms", "words"), [(23.3, "1.03× as fast"), (24.7, "0.97× as fast")])
def test_speedup_near_one_is_written_with_its_digits(ms: float, words: str) -> None:
    slow = reports.variant("cpu-int8", 5.05, ms, accuracy=reports.scored(88.0, -0.33, 1.12))
    # A slower engine is recommended if fp32 is inaccurate.
    base = reports.variant("cpu-fp32", 18.7, 24.0, accuracy=INACCURATE)
    assert f"`cpu-int8`: {words}" in conclude(reports.report(base, slow), NONE).verdict


@pytest.mark.parametrize(
    ("change", "agreement", "best"),
    [
        (-1.0, 90.0, "cpu-int8"),
        (-1.01, 96.9, "cpu-fp32"),
        (-1.01, 97.0, "cpu-int8"),
        (5.0, 90.0, "cpu-int8"),
    ],
)
def test_default_accuracy_limits_apply_without_gates(
    change: float, agreement: float, best: str
) -> None:
    accuracy = reports.scored(87.0, change, agreement=agreement)
    assert conclude(reports.with_int8(accuracy=accuracy), NONE).best == best


@pytest.mark.parametrize(
    ("top1", "agreement", "best"),
    [(24.9, 3.0, "cpu-fp32"), (24.9, 97.0, "cpu-int8"), (25.0, 3.0, "cpu-int8")],
)
def test_low_baseline_top1_makes_agreement_decide(top1: float, agreement: float, best: str) -> None:
    accuracy = reports.scored(top1, 0.0, agreement=agreement)
    base = replace(accuracy, agreement=None, change_pp=None)
    report = conclude(replace(reports.with_int8(accuracy=accuracy), baseline=base), NONE)
    assert report.best == best
    reason = f"`cpu-int8` differs too much from FP32 (agrees with FP32 on {agreement:.2f} % of the"
    assert report.verdict.startswith(reason) == (best == "cpu-fp32")


@pytest.mark.parametrize(
    ("report", "limits", "best"),
    [
        (reports.with_int8(accuracy=INACCURATE), GateConfig(max_drop=10.0), "cpu-int8"),
        (reports.with_int8(accuracy=INACCURATE), GateConfig(max_size=10.0), "cpu-fp16"),
        (reports.measured(), GateConfig(max_size=10.0, min_speedup=3.0), ""),
        (reports.unlabelled(), GateConfig(max_drop=1.0, allow_unmeasured=True), "cpu-int8"),
    ],
    ids=["accuracy gate", "size gate", "fp32 fails an absolute gate", "unmeasured is allowed"],
)
def test_best_variant_meets_gates(report: Report, limits: GateConfig, best: str) -> None:
    assert conclude(report, limits).best == best


def test_variant_timed_alone_is_not_the_best() -> None:
    fp32, fp16, int8 = reports.cpu()

    def timed_alone(reason: str) -> Report:
        fields: dict[str, Any] = {"latency": (), "unmeasured": {"latency": reason}}
        rows = (replace(fp32, **fields), fp16, replace(int8, **fields))
        return conclude(reports.report(*rows), NONE)

    report = timed_alone(NOT_TIMED_TOGETHER)
    assert report.best == ""
    assert report.verdict.startswith("Not timed together with `cpu-fp16`: `cpu-fp32`, `cpu-int8`; ")
    assert timed_alone("no GPU here").best == "cpu-fp16"


def test_latencies_compare_per_image() -> None:
    fp32, _, int8 = reports.cpu()
    at_batch_8 = replace(int8, latency=(reports.timing(80.0, 8),))
    assert conclude(reports.report(fp32, at_batch_8), NONE).best == "cpu-int8"


def test_unacceptable_float_engine_does_not_count_against_int8() -> None:
    latencies = {"cpu-fp16": 5.0, "cpu-int8": 10.0}
    rows = [reports.variant(name, 9.0, ms, accuracy=INACCURATE) for name, ms in latencies.items()]
    report = conclude(reports.report(reports.cpu()[0], *rows), NONE)
    assert report.best == "cpu-fp32"
    assert report.verdict.startswith("`cpu-int8` differs too much from FP32")


def test_conclude_is_idempotent() -> None:
    limits = GateConfig(max_drop=1)
    once = conclude(replace(reports.simulated(), run_notes=("2 images were broken",)), limits)
    assert conclude(once, limits) == once


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"weight-bits": 4}, "4-bit weights gain no speed or size over 8 bits"),
        (
            {"weight-bits": 4, "activation-bits": 6},
            "4-bit weights and 6-bit activations gain no speed or size over 8 bits",
        ),
        ({"weight-bits": 8, "activation-bits": 8}, ""),
    ],
)
def test_verdict_says_that_fewer_bits_gain_nothing(settings: dict[str, int], fact: str) -> None:
    report = replace(reports.measured(), config={"quantize": settings})
    verdict = conclude(report, NONE).verdict
    assert verdict.startswith("Ship `cpu-int8`")
    assert verdict.endswith(fact)
    assert ("gain" in verdict) is bool(fact)
