"""Each note appears where it applies, and nowhere else."""

from dataclasses import replace
from typing import Any

import pytest

from qconvert.core.config import GateConfig
from qconvert.measure.accuracy import IDENTICAL, NO_LABELS, Accuracy
from qconvert.report import json_file
from qconvert.report.html import render_html
from qconvert.report.markdown import render_markdown
from qconvert.report.model import ImageSetInfo, Report, UnquantizedNode
from qconvert.report.verdict import conclude
from tests.report import reports

QUIET = reports.scored(88.0, -0.3, 0.4)


def notes_in(report: Report) -> str:
    return "\n".join(conclude(report, GateConfig()).notes)


def sound_report() -> Report:
    """Return a run without any cause for a note."""
    fp32, _, int8 = reports.cpu()
    return reports.report(fp32, replace(int8, accuracy=QUIET))


def test_sound_run_has_no_notes() -> None:
    assert notes_in(sound_report()) == ""


def slow_int8(*nodes: tuple[str, str, str]) -> Report:
    left = tuple(UnquantizedNode(*node) for node in nodes)
    timing = (reports.timing(26.0),)
    return reports.with_int8(latency=timing, unquantized=left, candidates=60, accuracy=QUIET)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            [
                ("/b/0", "Conv", "few channels"),
                ("/b/1", "Conv", "few channels"),
                ("/h", "Gemm", ""),
            ],
            "because 3 of 60 operators are not quantized, most of them Conv (2: few channels, as "
            "in `/b/0`)",
        ),
        (
            [("/0", "Conv", "one row"), ("/1", "Conv", "few"), ("/2", "Conv", "few")],
            "because 3 of 60 operators are not quantized, most of them Conv (3: few, as in `/1`)",
        ),
        ([], "though all 60 operators that could be are quantized"),
    ],
)
def test_slow_int8_note_has_a_reason(nodes: list[tuple[str, str, str]], reason: str) -> None:
    assert (
        f"INT8 is not faster than FP32 on `cpu` (26.00 against 24.00 ms), {reason}: "
        "ship `cpu-fp32`, or look with `qconvert inspect --quantized`"
    ) in notes_in(slow_int8(*nodes))


def test_slow_int8_note_recommends_only_acceptable_engines() -> None:
    fp32, fp16, int8 = reports.cpu()
    half, slow = (
        replace(variant, latency=(reports.timing(ms),))
        for variant, ms in ((fp16, 20.0), (int8, 26.0))
    )
    bad = replace(half, accuracy=reports.scored(80.0, -8.3, agreement=90.0))
    assert "ship `cpu-fp16`" in notes_in(reports.report(fp32, half, slow))
    assert "than FP32 on `cpu` (26.00 against 24.00 ms)" in notes_in(
        reports.report(fp32, bad, slow)
    )
    assert "ship `cpu-fp32`" in notes_in(reports.report(fp32, bad, slow))
    text = notes_in(reports.report(bad, slow))
    assert "than FP16 on `cpu` (26.00 against 20.00 ms)" in text
    assert "answers in float, as in `/head/0`): look with" in text
    assert "ship" not in "".join(line for line in text.splitlines() if "not faster" in line)


def test_slow_int8_note_respects_the_gates() -> None:
    slow = reports.with_int8(latency=(reports.timing(26.0),))
    lines = conclude(slow, GateConfig(max_latency=5.0)).notes
    assert any("not faster" in note for note in lines)
    assert not any("ship `cpu-fp32`" in note for note in lines)


@pytest.mark.parametrize(("ms", "slow"), [(23.99, False), (24.0, True), (24.5, True)])
def test_equal_latency_is_not_faster(ms: float, slow: bool) -> None:
    report = reports.with_int8(latency=(reports.timing(ms),))
    assert ("INT8 is not faster" in notes_in(report)) == slow


@pytest.mark.parametrize(
    ("instructions", "ms", "words"),
    [
        (
            "AVX2 without VNNI",
            25.0,
            "INT8 is not faster on this CPU (Some EPYC, AVX2 without VNNI): no VNNI, so bytes are "
            "multiplied at most 1.3-2x as fast as floats; on a CPU with VNNI expect about 2.3x "
            "(EfficientNet-Lite0, not measured here)",
        ),
        ("AVX-512 without VNNI", 22.0, "INT8 is hardly faster (1.09×) on this CPU (Some EPYC, AVX"),
        ("SSE", 25.0, "(Some EPYC, SSE): neither AVX2 nor VNNI; on a CPU with VNNI expect about"),
        ("NEON without dotprod", 25.0, "no dot products of bytes; CPUs with dotprod have"),
        ("AVX2 without VNNI", 19.0, ""),
        ("AVX-512 VNNI", 25.0, ""),
        ("i8mm", 25.0, ""),
        ("VNNI", 25.0, ""),
    ],
)
def test_note_says_how_the_recorded_cpu_limits_int8(
    instructions: str, ms: float, words: str
) -> None:
    engine = reports.cpu_engine("unsigned")
    report = reports.with_int8(latency=(reports.timing(ms),), accuracy=QUIET, engine=engine)
    machine = {"cpu": "Some EPYC", "int8 instructions": instructions}
    report = conclude(replace(report, machine=machine), GateConfig())
    texts = (
        "\n".join(report.notes),
        render_markdown(report).replace("\n", " "),
        render_html(report, {}),
        json_file.dumps(report),
    )
    assert all(("on this CPU (Some" in text) == bool(words) for text in texts)
    assert words in texts[0]


def test_cpu_is_no_reason_on_a_gpu() -> None:
    report = reports.with_int8(
        latency=(reports.timing(25.0),), engine=reports.engine("cuda-int8", 5.0)
    )
    machine = {"int8 instructions": "AVX2 without VNNI"}
    assert "on this CPU" not in notes_in(replace(report, machine=machine))


@pytest.mark.parametrize(
    ("sign", "architecture", "words"),
    [
        ("signed", "x86_64", "its signed activations are right, but slow here, as x86 takes"),
        ("unsigned", "aarch64", "but not at their best here, as ARM takes signed ones (not meas"),
        ("unsigned", "arm64", "quantize again on arm64, not with `--from`, which keeps the plan"),
        ("unsigned", "x86_64", ""),
        ("signed", "aarch64", ""),
        ("signed", "riscv64", ""),
    ],
)
def test_note_names_an_engine_of_another_architecture(
    sign: str, architecture: str, words: str
) -> None:
    report = reports.with_int8(engine=reports.cpu_engine(sign), accuracy=QUIET)
    report = replace(report, machine={"os": f"Some Linux 12, Linux 6.1 {architecture}"})
    notes = notes_in(report)
    assert words in notes
    assert ("`cpu-int8` was quantized for another architecture" in notes) == bool(words)
    # The class of the CPU is no reason then.
    machine = {**report.machine, "int8 instructions": "AVX2 without VNNI"}
    slow = replace(report.variants[2], latency=(reports.timing(25.0),))
    slow_report = replace(report, machine=machine, variants=(*report.variants[:2], slow))
    assert ("on this CPU" in notes_in(slow_report)) == (not words)
    untimed = replace(report, variants=tuple(replace(row, latency=()) for row in report.variants))
    assert "another architecture" not in notes_in(untimed)


def test_latencies_are_compared_at_one_backend_and_batch_size() -> None:
    fp32, _, int8 = reports.cpu()
    fast, slow = (replace(int8, latency=(reports.timing(ms, 8),)) for ms in (70.0, 170.0))
    assert "(170.0 against 168.0 ms)" in notes_in(reports.report(fp32, slow))
    other = reports.variant("cuda-int8", 5.0, 50.0)
    once = replace(fp32, latency=fp32.latency[:1])
    for variants in ((fp32, int8, other), (fp32, fast), (once, fast)):
        assert "not faster" not in notes_in(reports.report(*variants))


def test_simulated_accuracy_note_names_the_engines() -> None:
    assert "accuracy of `tensorrt-rtx-fp32`, `tensorrt-rtx-fp16`, `tensorrt-rtx-int8` is that" in (
        notes_in(reports.simulated())
    )


@pytest.mark.parametrize(("shared", "words"), [(1, "share 1 image,"), (7, "share 7 images,")])
def test_shared_images_note_counts_them(shared: int, words: str) -> None:
    assert words in notes_in(replace(sound_report(), shared_images=shared))


def test_other_preprocessing_note_names_the_settings() -> None:
    usual = {"resize": 256, "crop": 224, "mean": [0.5]}
    report = replace(sound_report(), preprocess=usual, evaluation=ImageSetInfo("val", 200, "abc"))
    assert "prepared differently" not in notes_in(report)
    other = ImageSetInfo("val", 200, "abc", {**usual, "crop": 256})
    assert "differently (crop): " in notes_in(replace(report, evaluation=other))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"images": 1, "half_width_pp": None},
            "accuracy rests on 1 image: evaluate on 100 or more before trusting it",
        ),
        (
            {"images": 1000, "labelled": 20, "half_width_pp": 20.5},
            "accuracy rests on 20 labelled images: evaluate on 100 or more before trusting it",
        ),
        (
            {"half_width_pp": 1.12},
            "intervals are as wide as ± 1.1 pp with 300 images: about 1600 would bring them to "
            "± 0.5 pp",
        ),
        (
            {"images": 1000, "labelled": 200, "half_width_pp": 1.5},
            "intervals are as wide as ± 1.5 pp with 200 labelled images: about 1800 would bring "
            "them to ± 0.5 pp",
        ),
        ({"half_width_pp": 1.0}, ""),
    ],
)
def test_few_images_and_wide_intervals_have_a_note(changes: dict[str, Any], note: str) -> None:
    fp32, _, int8 = reports.cpu()
    accuracy = replace(QUIET, **changes)
    assert notes_in(reports.report(fp32, replace(int8, accuracy=accuracy))) == note


def test_fp16_computed_in_float32_has_a_note() -> None:
    fp32, fp16, int8 = reports.cpu()
    words = "`cpu-fp16` is stored in half the bytes and computed in float32 here"
    assert words in notes_in(reports.report(fp32, fp16, int8))
    measured = replace(fp16, by_precision={"fp32": 60}, by_provider={})
    assert words in notes_in(reports.report(fp32, measured))
    real = replace(fp16, by_precision={"fp16": 58, "fp32": 2})
    elsewhere = replace(fp16, by_provider={"CUDAExecutionProvider": 60})
    unknown = replace(fp16, by_provider={})
    for variant in (real, elsewhere, unknown):
        assert words not in notes_in(reports.report(fp32, variant))


@pytest.mark.parametrize(("top1", "doubted"), [(3.1, True), (24.9, True), (25.0, False)])
def test_low_baseline_top1_has_a_note(top1: float, doubted: bool) -> None:
    low = Accuracy(300, "engine", None, None, None, top1=top1)
    assert ("right on only" in notes_in(replace(sound_report(), baseline=low))) == doubted


def test_measurement_notes_are_grouped_by_variant() -> None:
    shaky = tuple(
        replace(latency, notes=("unstable",)) for latency in sound_report().variants[0].latency
    )
    fp32, int8 = sound_report().variants
    report = reports.report(
        replace(fp32, latency=shaky, notes=("threads: 2",)),
        replace(int8, notes=("threads: 2",)),
        run_notes=("2 images were broken",),
    )
    assert conclude(report, GateConfig()).notes == (
        "2 images were broken",
        "`cpu-fp32` at batch 1 (and 1 more timing): unstable",
        "`cpu-fp32`; `cpu-int8`: threads: 2",
    )


@pytest.mark.parametrize(
    ("reasons", "expected"),
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
def test_doubtful_timings_are_summarized_in_one_note(
    reasons: tuple[str, ...], expected: str
) -> None:
    fp32, int8 = sound_report().variants
    timings = tuple(
        replace(reports.timing(24.0, at + 1), notes=(reason,)) for at, reason in enumerate(reasons)
    )
    report = reports.report(replace(fp32, latency=timings), int8)
    assert conclude(report, GateConfig()).notes[0] == expected


def test_table_footnotes_are_not_repeated_as_notes() -> None:
    noted = replace(QUIET, notes=(NO_LABELS, IDENTICAL, "9 images have no label"))
    base = Accuracy(300, "engine", None, None, None, notes=("9 images have no label",))
    report = replace(reports.with_int8(accuracy=noted), baseline=base)
    assert conclude(report, GateConfig()).notes[0] == "9 images have no label"
    assert "no labels" not in notes_in(report)
    assert "bit for bit" not in notes_in(report)
    assert notes_in(report).count("9 images") == 1
