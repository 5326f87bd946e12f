"""The tables: measured numbers, reasons for missing ones, within 80 columns."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from qconvert.cli import console
from qconvert.core.config import GateConfig
from qconvert.measure.accuracy import IDENTICAL, IDENTICAL_WHERE_FINITE, Accuracy
from qconvert.report import tables
from qconvert.report.metrics import EXACT_OUTPUTS, NEVER_FINITE, ZERO_OUTPUTS, missing_score_reason
from qconvert.report.model import Report
from qconvert.report.table import TextTable
from qconvert.report.verdict import conclude
from tests.report import reports

SHAPES = {
    "measured": reports.measured,
    "simulated": reports.simulated,
    "wide": reports.wide,
    "unlabelled": reports.unlabelled,
    "regression": reports.regression,
    "one image": reports.one_image,
    "unrated": reports.unrated,
}
TABLES = (
    tables.size_table,
    tables.latency_table,
    tables.accuracy_table,
    tables.overview_table,
    tables.gate_table,
    tables.timing_table,
)

Show = Callable[[TextTable], str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Return the lines and footnotes of a table as written to a pipe."""

    def text(table: TextTable) -> str:
        console.write_table(table)
        body = capsys.readouterr().out
        notes = "\n".join(console.wrap_text(note, "  ") for note in table.footnotes)
        return f"{table.title}\n{body}{notes}".strip()

    return text


SIZE = """
Size
variant               MB   ratio
────────────────────────────────
FP32 ONNX           18.6
cpu-fp32            18.7   1.00×
cpu-fp16             9.4   0.50×
tensorrt-rtx-int8   10.7  0.58×¹
cuda-fp16             —²      —²
¹ against the FP32 ONNX file: no fp32 engine of this backend was built
² out of memory
"""


def test_size_table_compares_with_fp32_engine_or_file(show: Show) -> None:
    fp32, fp16, _ = reports.cpu()
    failed = reports.variant("cuda-fp16", 0, None, unmeasured={"engine": "out of memory"})
    rtx = reports.variant("tensorrt-rtx-int8", 10.7, None)
    report = reports.report(fp32, fp16, rtx, replace(failed, engine=None))
    assert _squeezed(show(tables.size_table(report))) == _squeezed(SIZE)


LATENCY = """
Latency
variant             batch      median ms   images/s   speed-up
──────────────────────────────────────────────────────────────
cpu-fp32                1   24.00 ± 0.36       41.7      1.00×
cpu-fp32                8    168.0 ± 2.5       47.6      1.00×
cpu-fp16                1   25.00 ± 0.37       40.0      0.96×
cpu-fp16                8    175.0 ± 2.6       45.7      0.96×
cpu-int8                1   10.00 ± 0.15        100      2.40×
cpu-int8                8   70.00 ± 1.04        114      2.40×
tensorrt-rtx-fp32                     —¹
tensorrt-rtx-fp16                     —¹
tensorrt-rtx-int8                     —¹
¹ no RTX GPU here
"""


def test_latency_table_has_a_row_for_each_engine_and_batch(show: Show) -> None:
    assert show(tables.latency_table(reports.simulated())) == LATENCY.strip()


ACCURACY = """
Accuracy, % of 300 images
variant              top-1   precision   recall      F1      change pp   agrees
───────────────────────────────────────────────────────────────────────────────
FP32 ONNX            88.33       88.00    88.50   88.10
cpu-fp32             88.33       87.93    88.53   88.23    0.00 ± 0.00    100.0
cpu-fp16             88.33       87.93    88.53   88.23    0.00 ± 0.00    98.50
cpu-int8             88.00       87.60    88.20   87.90   −0.33 ± 1.12    98.50
tensorrt-rtx-fp32¹   88.33       87.93    88.53   88.23    0.00 ± 0.00    98.50
tensorrt-rtx-fp16¹   88.33       87.93    88.53   88.23    0.00 ± 0.00    98.50
tensorrt-rtx-int8¹   87.33       86.93    87.53   87.23   −1.00 ± 1.30    98.50
¹ the same graph on ONNX Runtime's CPU: the engine does not run here
"""


def test_accuracy_table_marks_simulated_accuracy(show: Show) -> None:
    assert show(tables.accuracy_table(reports.simulated())) == ACCURACY.strip()


@pytest.mark.parametrize(
    ("labelled", "title"),
    [
        (20, "Accuracy, % of 20 labelled of 1000 images (agrees: of all)"),
        (1000, "Accuracy, % of 1000 images"),
        (None, "Accuracy, % of 1000 images"),
    ],
)
def test_accuracy_title_counts_labelled_images(labelled: int | None, title: str) -> None:
    accuracy = reports.scored(88.0, -0.3, images=1000, labelled=labelled)
    assert tables.accuracy_table(reports.with_int8(accuracy=accuracy)).title == title
    for shape in ("wide", "simulated"):
        assert "labelled" not in tables.accuracy_table(SHAPES[shape]()).title


UNLABELLED = """
Accuracy, % of 200 images¹
variant    agrees   SQNR dB       KL
────────────────────────────────────
cpu-fp32    100.0         ∞   0.0000
cpu-fp16    99.50      60.0   0.0000
cpu-int8    98.50      24.1   0.0030
¹ top-1, precision, recall and F1 need labels: class folders, or `--labels`
"""


def test_accuracy_table_without_labels_has_agreement(show: Show) -> None:
    assert show(tables.accuracy_table(reports.unlabelled())) == UNLABELLED.strip()


def test_missing_output_errors_have_a_reason() -> None:
    bare = Accuracy(32, "engine", 100.0, sqnr_db=None, kl=0.0)
    (variant, *_) = reports.measured().variants

    def why(accuracy: Accuracy, name: str = "sqnr_db") -> str:
        return missing_score_reason(replace(variant, accuracy=accuracy), name)

    assert why(replace(bare, notes=(IDENTICAL,))) == EXACT_OUTPUTS
    assert why(replace(bare, sqnr_db=math.inf)) == EXACT_OUTPUTS
    assert why(replace(bare, cosine=1.0, notes=(IDENTICAL_WHERE_FINITE,))) == IDENTICAL_WHERE_FINITE
    # An output other than the scores is NaN on all images, or zero in FP32 alone.
    assert why(bare) == NEVER_FINITE
    assert why(replace(bare, cosine=0.0)) == ZERO_OUTPUTS
    assert why(replace(bare, kl=None), "kl") == NEVER_FINITE


def test_kl_slightly_below_zero_has_no_sign(show: Show) -> None:
    fp32, *others = reports.unlabelled().variants
    less = replace(fp32, accuracy=reports.alike(100.0, 60.0, kl=-1e-12))
    assert "-0.0" not in show(tables.accuracy_table(reports.report(less, *others, baseline=None)))


def test_accuracy_table_of_regression_has_output_errors(show: Show) -> None:
    text = show(tables.accuracy_table(reports.regression()))
    assert "variant    SQNR dB    cosine" in text
    assert "¹ no top-1 and no agreement: the outputs are not class scores" in text


def test_accuracy_table_without_evaluation_has_one_footnote(show: Show) -> None:
    text = show(tables.accuracy_table(reports.unrated()))
    assert text.count("no `--eval`") == 1
    assert "cpu-int8      —¹       —¹" in text


def test_missing_speedup_has_a_reason(show: Show) -> None:
    fp32, fp16, int8 = reports.cpu()
    alone = show(tables.latency_table(reports.report(int8)))
    assert "no fp32 engine of `cpu` to compare with" in alone
    once = replace(fp32, latency=fp32.latency[:1])
    assert "`cpu-fp32` was not timed at this batch size" in show(
        tables.latency_table(reports.report(once, int8))
    )
    assert "compare" not in show(tables.latency_table(reports.report(fp32, fp16)))


def test_device_latencies_have_their_own_column(show: Show) -> None:
    fp32, *_ = reports.cpu()
    both = replace(fp32, latency=(*fp32.latency, reports.timing(20.0, 1, "device")))
    assert "device ms" in show(tables.latency_table(reports.report(both)))
    assert "device ms" not in show(tables.latency_table(reports.report(fp32)))
    device = replace(fp32, latency=(reports.timing(20.0, 1, "device"),))
    assert "20.00" in show(tables.latency_table(reports.report(device)))


def test_memory_column_appears_if_measured() -> None:
    table = tables.size_table(reports.measured())
    assert [column.title for column in table.columns] == ["variant", "MB", "ratio", "memory MB"]
    assert [row[-1] for row in table.rows] == ["", "—¹", "—¹", "90.0"]
    fp32, fp16, _ = reports.cpu()
    assert len(tables.size_table(reports.report(fp32, fp16)).columns) == 3


OVERVIEW = """
Variants
variant               MB         p50 ms   speed   top-1    Δ pp   gate
──────────────────────────────────────────────────────────────────────────
cpu-fp32            18.7   24.00 ± 0.36   1.00×   88.33    0.00   baseline
cpu-fp16             9.4   25.00 ± 0.37   0.96×   88.33    0.00   pass
cpu-int8             5.0   10.00 ± 0.15   2.40×   88.00   −0.33   pass ◆
tensorrt-rtx-fp32   19.1              —       —   88.33    0.00   baseline
tensorrt-rtx-fp16    9.8              —       —   88.33    0.00   pass
tensorrt-rtx-int8   10.7              —       —   87.33   −1.00   FAIL
"""


def test_overview_table_marks_the_best_variant(show: Show) -> None:
    report = conclude(reports.simulated(), GateConfig(max_drop=0.5))
    assert show(tables.overview_table(report)) == OVERVIEW.strip()


GATES = """
Gates
gate       variant                   value     limit   result
─────────────────────────────────────────────────────────────
max-drop   cpu-fp16            0.00 ± 0.00   0.50 pp   pass
max-drop   cpu-int8            0.33 ± 1.12   0.50 pp   pass
max-drop   tensorrt-rtx-fp16  0.00 ± 0.00¹   0.50 pp   pass
max-drop   tensorrt-rtx-int8  1.00 ± 1.30¹   0.50 pp   FAIL
¹ its graph on the CPU
"""


def test_gate_table_has_value_interval_and_limit(show: Show) -> None:
    report = conclude(reports.simulated(), GateConfig(max_drop=0.5))
    assert _squeezed(show(tables.gate_table(report))) == _squeezed(GATES)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_report_tables_fit_80_columns(
    shape: str, table: Callable[[Report], TextTable], show: Show
) -> None:
    limits = GateConfig(
        max_drop=1.0, min_agreement=97.0, max_latency=5.0, min_speedup=2.0, max_size=10.0
    )
    text = show(table(conclude(SHAPES[shape](), limits)))
    assert max(map(len, text.splitlines())) <= 80
    assert "nan" not in text
    assert "None" not in text


def test_placement_and_unquantized_tables_count_nodes(show: Show) -> None:
    text = show(tables.placement_table(reports.measured()))
    assert "cpu-int8   60 CPU              —¹              58 of 60" in text
    assert "cpu-fp32   60 CPU              60 fp32" in text
    assert tables.unquantized_table(reports.measured()).rows == [
        ("cpu-int8", "Gemm", "2", "answers in float")
    ]


def _squeezed(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines() if "──" not in line]
