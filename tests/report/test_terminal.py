"""What stands below the tables: the verdict last, in 80 columns, numbers and names whole."""

from qconvert.config import Gate
from qconvert.report import terminal
from qconvert.report.conclude import conclude
from tests.report import reports

ENDING = """\
gate failed: max-drop: `cpu-int8` lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp
note: intervals are as wide as ± 1.1 pp with 300 images: about 1600 would bring
  them to ± 0.5 pp
note: `cpu-fp16` is stored in half the bytes and computed in float32 here: ship
  it for its size, and another precision for speed
`cpu-int8` fails max-drop (lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp), so ship
`cpu-fp32`: 24.00 ms at batch 1"""


def test_failed_gates_notes_and_verdict_in_this_order() -> None:
    assert terminal.ending(conclude(reports.measured(), Gate(max_drop=0.2))) == ENDING


def test_lines_fit_and_end_nowhere_inside_a_number() -> None:
    for shape in (reports.wide, reports.simulated, reports.regression, reports.unlabelled):
        report = conclude(shape(), Gate(max_drop=0.2, min_speedup=9.0))
        lines = terminal.ending(report).splitlines()
        assert max(map(len, lines)) <= 80
        for line in lines:
            assert not line.endswith("±")
            assert not line.strip().startswith(("±", "% ", "pp", "ms "))


def test_names_are_not_cut() -> None:
    name = "`/features/" + "x" * 90 + "-y`"
    assert name in terminal.wrapped(f"a note on {name} and more")[1]


def test_a_report_without_a_verdict_ends_in_nothing() -> None:
    assert terminal.ending(reports.measured()) == ""
