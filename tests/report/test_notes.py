"""Each note appears where it should, and nowhere else."""

from dataclasses import replace

import pytest

from qconvert.core.config import GateConfig
from qconvert.measure.accuracy import IDENTICAL, NO_LABELS, Accuracy
from qconvert.report import notes
from qconvert.report.model import ImageSetInfo, Report, UnquantizedNode
from qconvert.report.verdict import conclude
from tests.report import reports

QUIET = reports.scored(88.0, -0.3, 0.4)


def said(report: Report) -> str:
    return "\n".join(notes.collect_notes(report))


def quiet() -> Report:
    """Return a run that nothing is to be said about."""
    fp32, _, int8 = reports.cpu()
    return reports.report(fp32, replace(int8, accuracy=QUIET))


def test_there_is_nothing_to_say_of_a_sound_run() -> None:
    assert said(quiet()) == ""


def test_int8_that_is_slower_names_what_stayed_in_float() -> None:
    left = tuple(UnquantizedNode(f"/block/{n}/Conv", "Conv", "few channels") for n in range(3))
    left += (UnquantizedNode("/head", "Gemm", "one row"),)
    slow = reports.with_int8(
        latency=(reports.took(26.0),), unquantized=left, candidates=60, accuracy=QUIET
    )
    assert (
        "INT8 is not faster than FP32 on `cpu` (26.00 against 24.00 ms), because 4 of 60 operators "
        "are not quantized, most of them Conv (3: few channels, as in `/block/0/Conv`): "
        "ship `cpu-fp32`, or look with `qconvert inspect --quantized`"
    ) in said(slow)


def test_the_node_that_is_named_has_the_reason_that_is_named() -> None:
    reasons = ("one row", "few channels", "few channels")
    left = tuple(UnquantizedNode(f"/{at}/Conv", "Conv", why) for at, why in enumerate(reasons))
    slow = reports.with_int8(latency=(reports.took(26.0),), unquantized=left, candidates=60)
    assert "Conv (3: few channels, as in `/1/Conv`)" in said(slow)


def test_int8_that_is_slower_though_all_is_quantized_blames_no_operator() -> None:
    slow = reports.with_int8(
        latency=(reports.took(26.0),), unquantized=(), candidates=60, accuracy=QUIET
    )
    assert "though all 60 operators that could be are quantized" in said(slow)


def test_only_what_keeps_its_limits_and_answers_well_is_advised() -> None:
    fp32, fp16, int8 = reports.cpu()
    half, slow = (
        replace(each, latency=(reports.took(ms),)) for each, ms in ((fp16, 20.0), (int8, 26.0))
    )
    bad = replace(half, accuracy=reports.scored(80.0, -8.3, agreement=90.0))
    assert "ship `cpu-fp16`" in said(reports.report(fp32, half, slow))
    assert "than FP32 on `cpu` (26.00 against 24.00 ms)" in said(reports.report(fp32, bad, slow))
    assert "ship `cpu-fp32`" in said(reports.report(fp32, bad, slow))
    told = said(reports.report(bad, slow))
    assert "than FP16 on `cpu` (26.00 against 20.00 ms)" in told
    assert "answers in float, as in `/head/0`): look with" in told
    assert "ship" not in "".join(line for line in told.splitlines() if "not faster" in line)


def test_gates_of_this_judgement_decide_what_is_advised() -> None:
    slow = reports.with_int8(latency=(reports.took(26.0),))
    told = conclude(slow, GateConfig(max_latency=5.0)).notes
    assert any("not faster" in note for note in told)
    assert not any("ship `cpu-fp32`" in note for note in told)


def test_the_timings_that_were_compared_are_told() -> None:
    fp32, _, int8 = reports.cpu()
    eight = replace(int8, latency=(reports.took(170.0, 8),))
    assert "(170.0 against 168.0 ms)" in said(reports.report(fp32, eight))


@pytest.mark.parametrize(("ms", "told"), [(23.99, False), (24.0, True), (24.5, True)])
def test_equal_is_not_faster(ms: float, told: bool) -> None:
    report = reports.with_int8(latency=(reports.took(ms),))
    assert ("INT8 is not faster" in said(report)) == told


def test_engines_of_other_backends_and_other_batches_do_not_compare() -> None:
    fp32, _, int8 = reports.cpu()
    other = reports.variant("cuda-int8", 5.0, 50.0)
    assert "not faster" not in said(reports.report(fp32, int8, other))
    eight = replace(int8, latency=(reports.took(70.0, 8),))
    assert "not faster" not in said(reports.report(fp32, eight))
    timed_less = replace(fp32, latency=fp32.latency[:1])
    assert "not faster" not in said(reports.report(timed_less, eight))


def test_simulated_accuracy_names_the_engines() -> None:
    assert "accuracy of `tensorrt-rtx-fp32`, `tensorrt-rtx-fp16`, `tensorrt-rtx-int8` is that" in (
        said(reports.simulated())
    )


@pytest.mark.parametrize(("shared", "words"), [(1, "share 1 image,"), (7, "share 7 images,")])
def test_shared_images_are_counted(shared: int, words: str) -> None:
    assert words in said(replace(quiet(), shared_images=shared))


def test_images_prepared_in_another_way_are_told_with_what_differs() -> None:
    usual = {"resize": 256, "crop": 224, "mean": [0.5]}
    report = replace(quiet(), preprocess=usual, evaluation=ImageSetInfo("val", 200, "abc"))
    assert "prepared differently" not in said(report)
    other = ImageSetInfo("val", 200, "abc", {**usual, "crop": 256})
    assert "differently (crop): " in said(replace(report, evaluation=other))


def test_one_image_is_too_few() -> None:
    one = replace(QUIET, images=1, half_width_pp=None)
    report = reports.with_int8(accuracy=one)
    assert "accuracy rests on 1 image: evaluate on 100 or more" in said(report)


def test_wide_intervals_say_how_many_images_would_do() -> None:
    report = reports.with_int8(accuracy=replace(QUIET, half_width_pp=1.12))
    assert (
        "intervals are as wide as ± 1.1 pp with 300 images: about 1600 would bring them to ± 0.5 pp"
    ) in said(report)
    assert "intervals" not in said(reports.with_int8(accuracy=replace(QUIET, half_width_pp=1.0)))


def test_images_without_labels_do_not_count_for_intervals() -> None:
    few = replace(QUIET, images=1000, labelled=20, half_width_pp=20.5)
    assert "accuracy rests on 20 labelled images: evaluate on 100 or more" in said(
        reports.with_int8(accuracy=few)
    )
    some = replace(QUIET, images=1000, labelled=200, half_width_pp=1.5)
    assert ("± 1.5 pp with 200 labelled images: about 1800 would bring them to ± 0.5 pp") in said(
        reports.with_int8(accuracy=some)
    )


def test_half_precision_that_computes_in_float_says_so() -> None:
    fp32, fp16, int8 = reports.cpu()
    words = "`cpu-fp16` is stored in half the bytes and computed in float32 here"
    assert words in said(reports.report(fp32, fp16, int8))
    known = replace(fp16, by_precision={"fp32": 60}, by_provider={})
    assert words in said(reports.report(fp32, known))
    real = replace(fp16, by_precision={"fp16": 58, "fp32": 2})
    elsewhere = replace(fp16, by_provider={"CUDAExecutionProvider": 60})
    unknown = replace(fp16, by_provider={})
    for each in (real, elsewhere, unknown):
        assert words not in said(reports.report(fp32, each))


@pytest.mark.parametrize(("top1", "told"), [(3.1, True), (24.9, True), (25.0, False)])
def test_a_baseline_that_is_mostly_wrong_is_doubted(top1: float, told: bool) -> None:
    low = Accuracy(300, "engine", None, None, None, top1=top1)
    assert ("right on only" in said(replace(quiet(), baseline=low))) == told


def test_what_was_noted_while_measuring_is_told_once_for_all_it_is_about() -> None:
    shaky = tuple(replace(each, notes=("unstable",)) for each in quiet().variants[0].latency)
    fp32, int8 = quiet().variants
    report = reports.report(
        replace(fp32, latency=shaky, notes=("threads: 2",)),
        replace(int8, notes=("threads: 2",)),
        run_notes=("2 images were broken",),
    )
    assert notes.collect_notes(report) == (
        "2 images were broken",
        "`cpu-fp32` at batch 1 (and 1 more timing): unstable",
        "`cpu-fp32`; `cpu-int8`: threads: 2",
    )


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (("slow",), "`cpu-fp32` at batch 1: slow"),
        (("slow", "slow", "slow"), "`cpu-fp32` at batch 1 (and 2 more timings): slow"),
        (("slow", "odd"), "`cpu-fp32` at batch 1: slow; 1 more timing is doubtful too"),
        (
            ("slow", "odd", "slow", "few"),
            "`cpu-fp32` at batch 1 (and 1 more timing): slow; 2 more timings are doubtful too",
        ),
    ],
)
def test_a_doubt_is_told_of_the_timings_that_it_is_about(
    reasons: tuple[str, ...], told: str
) -> None:
    fp32, int8 = quiet().variants
    timings = tuple(
        replace(reports.took(24.0, at + 1), notes=(each,)) for at, each in enumerate(reasons)
    )
    assert notes.collect_notes(reports.report(replace(fp32, latency=timings), int8))[0] == told


def test_what_the_table_says_below_itself_is_not_said_again() -> None:
    noted = replace(QUIET, notes=(NO_LABELS, IDENTICAL, "9 images have no label"))
    base = Accuracy(300, "engine", None, None, None, notes=("9 images have no label",))
    report = replace(reports.with_int8(accuracy=noted), baseline=base)
    assert notes.collect_notes(report)[0] == "9 images have no label"
    assert "no labels" not in said(report)
    assert "bit for bit" not in said(report)
    assert said(report).count("9 images") == 1
