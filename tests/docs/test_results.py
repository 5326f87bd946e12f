"""The table of what was proven on each GPU backend is that of the tests."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.gpu_lab import table
from tests.gpu_lab.table import Claim

DEVICE = Claim("cuda", "outputs", "real device", "tests/backends/test_contract.py")
OTHERS = [
    Claim("cuda", "outputs", "real wheel", "tests/gpu_lab/test_lab.py", "failed"),
    Claim("cuda", "outputs", "real wheel", "tests/gpu_lab/test_cuda.py"),
    Claim("tensorrt", "graphs", "real bindings", "tests/gpu_lab/test_lab.py", "skipped"),
]
REPORT = """
<testsuites><testsuite>
<testcase><properties><property name="proves" value='{claim}'/></properties>{child}</testcase>
</testsuite></testsuites>
"""


@pytest.mark.slow
def test_page_holds_what_the_tests_prove() -> None:
    """`make gpu-lab` writes it again; only a GPU host fills the last column."""
    declared, text = table.collected(), table.PAGE.read_text(encoding="utf-8")
    assert table.update(text, declared, []) == text


def test_failed_test_outweighs_passed_ones_and_skipped_ones_prove_nothing() -> None:
    [_, _, row] = table.render([DEVICE, *OTHERS]).splitlines()
    assert row == (
        "| `cuda` | outputs | [failed](../tests/gpu_lab/test_lab.py) |  |  "
        "| [passed](../tests/backends/test_contract.py) |"
    )


def test_outcomes_stay_until_their_test_runs_again_or_goes() -> None:
    page = f"text {table.BEGIN}{table.render([DEVICE])}{table.END} more"
    skipped, failed = (replace(DEVICE, outcome=outcome) for outcome in ("skipped", "failed"))
    new = replace(DEVICE, by="real wheel", file="tests/gpu_lab/test_lab.py")
    assert table.parse(table.update(page, [DEVICE], [skipped])) == [DEVICE]
    assert table.parse(table.update(page, [DEVICE], [failed])) == [failed]
    not_run = replace(new, outcome="not run")
    assert table.parse(table.update(page, [DEVICE, new], [])) == [not_run, DEVICE]
    assert table.parse(table.update(page, [], [])) == []
    assert table.update(page, [], []).endswith(f"{table.END} more")


@pytest.mark.parametrize(
    ("child", "outcome"),
    [("", "passed"), ("<failure/>", "failed"), ("<error/>", "failed"), ("<skipped/>", "skipped")],
)
def test_outcomes_are_read_from_a_report(child: str, outcome: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(claim=json.dumps(asdict(DEVICE)), child=child))
    [claim] = table.read(report)
    assert (claim.feature, claim.outcome) == (DEVICE.feature, outcome)
