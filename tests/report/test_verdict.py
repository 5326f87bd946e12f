"""One sentence that names what to ship, and says when nothing should be."""

from dataclasses import replace

import pytest

from qconvert.core.config import GateConfig as Limits
from qconvert.report.metrics import NOT_TIMED_TOGETHER
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report import reports

NONE = Limits()


def test_the_fastest_that_answers_well_is_shipped() -> None:
    report = conclude(reports.measured(), NONE)
    assert report.best == "cpu-int8"
    assert report.verdict == (
        "Ship `cpu-int8`: 2.40× as fast as fp32, 27 % of the size, top-1 −0.3 ± 1.1 pp"
    )


def test_what_is_hardly_faster_is_not_told_to_be_as_fast() -> None:
    # Even what is slower may be all there is, where the fp32 engine answers otherwise.
    bad = reports.scored(80.0, -8.3, agreement=90.0)
    for ms, words in ((23.3, "1.03× as fast"), (24.7, "0.97× as fast")):
        slow = reports.variant("cpu-int8", 5.05, ms, accuracy=reports.scored(88.0, -0.33, 1.12))
        base = reports.variant("cpu-fp32", 18.7, 24.0, accuracy=bad)
        assert f"`cpu-int8`: {words}" in conclude(reports.report(base, slow), NONE).verdict


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_drop=1.0), "; all gates passed"),
        (Limits(max_drop=1.0, min_speedup=2.0), "; its gates passed"),
    ],
)
def test_gates_are_told(limits: Limits, words: str) -> None:
    assert conclude(reports.measured(), limits).verdict.endswith(words)


def test_int8_that_is_slower_is_not_shipped() -> None:
    report = conclude(reports.with_int8(latency=(reports.took(30.0),)), NONE)
    assert report.best == "cpu-fp32"
    assert report.verdict == "INT8 is not faster here, so ship `cpu-fp32`: 24.00 ms at batch 1"


def test_int8_that_answers_otherwise_is_not_shipped() -> None:
    bad = reports.scored(80.0, -8.3, 2.0, agreement=90.0)
    report = conclude(reports.with_int8(accuracy=bad), NONE)
    assert report.verdict.startswith(
        "`cpu-int8` differs too much from FP32 (top-1 −8.3 ± 2.0 pp), so ship `cpu-fp32`"
    )


@pytest.mark.parametrize(
    ("change", "agreement", "best"),
    [
        (-1.0, 90.0, "cpu-int8"),
        (-1.01, 96.9, "cpu-fp32"),
        (-1.01, 97.0, "cpu-int8"),
        (5.0, 90.0, "cpu-int8"),
    ],
)
def test_without_gates_97_percent_or_one_point_are_enough(
    change: float, agreement: float, best: str
) -> None:
    found = reports.scored(87.0, change, agreement=agreement)
    assert conclude(reports.with_int8(accuracy=found), NONE).best == best


@pytest.mark.parametrize(
    ("top1", "agreement", "best"),
    [(24.9, 3.0, "cpu-fp32"), (24.9, 97.0, "cpu-int8"), (25.0, 3.0, "cpu-int8")],
)
def test_where_fp32_is_mostly_wrong_no_change_of_top1_is_enough(
    top1: float, agreement: float, best: str
) -> None:
    found = reports.scored(top1, 0.0, agreement=agreement)
    base = replace(found, agreement=None, change_pp=None)
    report = conclude(replace(reports.with_int8(accuracy=found), baseline=base), NONE)
    assert report.best == best
    told = f"`cpu-int8` differs too much from FP32 (agrees with FP32 on {agreement:.2f} % of the"
    assert report.verdict.startswith(told) == (best == "cpu-fp32")


def test_an_fp32_engine_that_answers_otherwise_is_not_shipped() -> None:
    bad = reports.scored(80.0, -8.3, 2.0, agreement=90.0)
    rows = [replace(each, accuracy=bad) for each in reports.cpu()]
    report = conclude(reports.report(*rows), NONE)
    assert report.best == ""
    assert report.verdict.startswith("Nothing to ship: `cpu-int8` differs too much from FP32")
    alone = conclude(reports.report(rows[0]), NONE).verdict
    assert alone.startswith("Nothing to ship: `cpu-fp32` differs too much from FP32 (top-1 −8.3")


def test_a_gate_on_answers_takes_the_place_of_the_usual_limit() -> None:
    lossy = reports.with_int8(accuracy=reports.scored(80.0, -8.0, agreement=90.0))
    assert conclude(lossy, Limits(max_drop=10.0)).best == "cpu-int8"
    assert conclude(lossy, Limits(max_size=10.0)).best == "cpu-fp16"


def test_an_engine_is_not_the_best_of_one_that_was_timed_alone() -> None:
    fp32, fp16, int8 = (replace(each, latency=()) for each in reports.measured().variants)
    before = {"latency": NOT_TIMED_TOGETHER}
    alone = reports.measured().variants[1]
    rows = (replace(fp32, unmeasured=before), alone, replace(int8, unmeasured=before))
    report = conclude(reports.report(*rows), NONE)
    assert report.best == ""
    assert report.verdict.startswith("Not timed together with `cpu-fp16`: `cpu-fp32`, `cpu-int8`; ")
    reasons = {"latency": "no GPU here"}
    never = (replace(fp32, unmeasured=reasons), alone, replace(int8, unmeasured=reasons))
    assert conclude(reports.report(*never), NONE).best == fp16.name


def test_what_is_only_planned_is_built_by_going_on() -> None:
    rows = (replace(each, latency=(), engine=None) for each in reports.measured().variants)
    verdict = conclude(reports.report(*rows), NONE).verdict
    assert verdict.startswith("Nothing was built (")
    assert verdict.endswith("`qconvert build --from RUN` continues")


def test_a_failed_gate_is_named() -> None:
    report = conclude(reports.measured(), Limits(max_drop=0.2))
    assert report.verdict.startswith(
        "`cpu-int8` fails max-drop (lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp), "
        "so ship `cpu-fp32`: 24.00 ms"
    )


def test_nothing_is_shipped_when_nothing_keeps_the_limits() -> None:
    report = conclude(reports.measured(), Limits(max_latency=5.0))
    assert report.best == ""
    assert report.verdict == (
        "Nothing to ship: `cpu-int8` fails max-latency (takes 10.00 ms (batch 1), "
        "limit 5.00 ms), and no other engine does better"
    )


def test_fp32_is_no_way_out_where_it_breaks_a_limit_of_its_own() -> None:
    report = conclude(reports.measured(), Limits(max_size=10.0, min_speedup=3.0))
    assert report.best == ""


def test_a_backend_on_which_nothing_was_timed_is_named() -> None:
    verdict = conclude(reports.simulated(), NONE).verdict
    assert verdict.endswith("; nothing was timed on `tensorrt-rtx`")


def test_nothing_timed_is_no_verdict() -> None:
    rtx = reports.simulated().variants[3:]
    report = conclude(reports.report(*rtx), NONE)
    assert report.best == ""
    assert report.verdict == (
        "Nothing was timed (no RTX GPU here): run `qconvert bench` where the engines work"
    )


def test_what_was_not_to_be_timed_is_told_by_its_answers() -> None:
    compared = [replace(each, latency=()) for each in reports.measured().variants]
    report = conclude(reports.report(*compared), NONE)
    assert report.verdict.startswith("Nothing was timed; accuracy: `cpu-fp16` top-1 ")
    assert "`cpu-fp32`" not in report.verdict
    bare = [replace(each, accuracy=None) for each in compared]
    assert conclude(reports.report(*bare), NONE).verdict == "Nothing was timed"


def test_without_evaluation_nothing_is_recommended() -> None:
    report = conclude(reports.unrated(), NONE)
    assert report.best == ""
    assert report.verdict == (
        "`cpu-int8` is the fastest (2.40× as fast as fp32, 27 % of the size), "
        "but its accuracy is unknown: run `qconvert evaluate` with `--eval`"
    )


def test_without_labels_agreement_decides() -> None:
    report = conclude(reports.unlabelled(), NONE)
    assert report.best == "cpu-int8"
    assert report.verdict.endswith("agrees with FP32 on 98.50 % of the images")


def test_one_image_gives_no_interval() -> None:
    report = conclude(reports.one_image(), Limits(max_drop=1.0))
    assert report.verdict.endswith("27 % of the size, top-1 0.0 pp; all gates passed")
    assert report.gates[0].half_width is None


def test_distances_of_outputs_are_for_the_user_to_judge() -> None:
    report = conclude(reports.regression(), NONE)
    assert report.best == ""
    assert report.verdict == (
        "Ship `cpu-int8` if its output error is acceptable to you: "
        "2.40× as fast as fp32, 27 % of the size, output SQNR 24.1 dB"
    )


def test_an_unmeasured_gate_speaks_against_a_variant_unless_it_may_pass() -> None:
    strict = conclude(reports.unlabelled(), Limits(max_drop=1.0))
    assert strict.verdict == (
        "`cpu-int8` fails max-drop, which was not measured, so ship `cpu-fp32`: 24.00 ms at batch 1"
    )
    lenient = conclude(reports.unlabelled(), Limits(max_drop=1.0, allow_unmeasured=True))
    assert lenient.best == "cpu-int8"


def test_batches_are_compared_by_the_image() -> None:
    fp32, _, int8 = reports.cpu()
    eight = replace(int8, latency=(reports.took(80.0, 8),))
    assert conclude(reports.report(fp32, eight), NONE).best == "cpu-int8"


def test_concluding_again_changes_nothing() -> None:
    once = conclude(
        replace(reports.simulated(), run_notes=("2 images were broken",)), Limits(max_drop=1)
    )
    assert conclude(once, Limits(max_drop=1)) == once


def test_a_run_that_built_nothing_says_so() -> None:
    empty: Report = conclude(reports.report(), NONE)
    assert (empty.best, empty.verdict) == ("", "Nothing was built")


def test_fp32_does_not_win_against_engines_that_were_not_timed_with_it() -> None:
    report = conclude(reports.with_int8(latency=()), NONE)
    assert report.best == ""
    assert report.verdict == (
        "Not timed together with `cpu-fp32`: `cpu-int8`; "
        "`qconvert bench RUN` times all of them together"
    )


def test_what_fails_is_told_of_the_engines_that_are_judged() -> None:
    report = conclude(reports.measured(), Limits(max_size=0.001))
    assert report.verdict.startswith("Nothing to ship: `cpu-int8` fails max-size")


def test_a_float_engine_that_is_no_choice_is_no_reason_against_int8() -> None:
    bad = reports.scored(80.0, -8.3, 2.0, agreement=90.0)
    others = {"cpu-fp16": 5.0, "cpu-int8": 10.0}
    rows = [reports.variant(name, 9.0, ms, accuracy=bad) for name, ms in others.items()]
    report = conclude(reports.report(reports.cpu()[0], *rows), NONE)
    assert report.best == "cpu-fp32"
    assert report.verdict.startswith("`cpu-int8` differs too much from FP32")
