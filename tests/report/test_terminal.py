"""The terminal output beside tables: bars, wrapped notes, and the verdict at the end."""

import re
from pathlib import Path

import pytest

from qconvert.cli import console
from qconvert.core.config import GateConfig
from qconvert.report import json_file, tables
from qconvert.report.verdict import conclude
from tests.cli.test_console import on_terminal
from tests.report import reports

ENDING = """\
gate failed: max-drop: `cpu-int8` lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp
note: intervals are as wide as ± 1.1 pp with 300 images: about 1600 would bring
  them to ± 0.5 pp
note: `cpu-fp16` is stored in half the bytes and computed in float32 here: ship
  it for its size, and another precision for speed

`cpu-int8` fails max-drop (lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp), so ship
`cpu-fp32`: 24.00 ms at batch 1"""


def test_closing_text_ends_with_the_verdict() -> None:
    assert console.closing_text(conclude(reports.measured(), GateConfig(max_drop=0.2))) == ENDING


def test_closing_lines_fit_and_keep_numbers_with_their_units() -> None:
    for shape in (reports.wide, reports.simulated, reports.regression, reports.unlabelled):
        report = conclude(shape(), GateConfig(max_drop=0.2, min_speedup=9.0))
        lines = console.closing_text(report).splitlines()
        assert max(map(len, lines)) <= 80
        for line in lines:
            assert not line.endswith("±")
            assert not line.strip().startswith(("±", "% ", "pp", "ms "))


def test_wrapping_does_not_break_names() -> None:
    name = "`/features/" + "x" * 90 + "-y`"
    assert name in console.wrap_text(f"a note on {name} and more").splitlines()[1]


def test_closing_text_is_empty_without_a_verdict() -> None:
    assert console.closing_text(reports.measured()) == ""


def test_latency_bars_are_relative_to_the_batch_size() -> None:
    table = tables.latency_table(reports.simulated(), bars=True)
    assert table.columns[-1].title == "time"
    bars = {row[:2]: row[-1] for row in table.rows}
    assert bars["cpu-fp16", "1"] == bars["cpu-fp16", "8"] == "████████"
    assert bars["cpu-int8", "1"] == "███▎"
    assert bars["tensorrt-rtx-int8", ""] == ""


@pytest.mark.slow
def test_report_fits_an_80_column_terminal(tmp_path: Path) -> None:
    report = conclude(reports.simulated(), GateConfig(max_drop=0.2))
    (tmp_path / "report.json").write_text(json_file.dumps(report), encoding="utf-8")
    script = (
        f"from qconvert.cli import main; main.main(['report', '{tmp_path}'], standalone_mode=False)"
    )
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in on_terminal(80, script).splitlines()]
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert any("████████" in line for line in lines)
    rows = [line.split()[0] for line in lines if re.match(r"(cpu|tensorrt)", line)]
    assert len(rows) == 4 * 6 + 3  # four tables, and a second batch size of those that were timed
