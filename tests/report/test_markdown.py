"""Markdown that GitHub renders as intended, whatever names and reasons hold."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from qconvert.core.config import GateConfig
from qconvert.report import markdown, tables
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report import reports
from tests.report.test_tables import SHAPES

HEAD = """\
# lite0.onnx

**`cpu-int8` fails max-drop (lost 0.33 ± 1.12 pp of top-1, limit 0.20 pp), so ship `cpu-fp32`: \
24.00 ms at batch 1.**

## Gates

| gate | variant | value | limit | result |
| --- | --- | ---: | ---: | --- |
| max-drop | cpu-fp16 | 0.00 ± 0.00 | 0.20 pp | pass |
| max-drop | cpu-int8 | 0.33 ± 1.12 | 0.20 pp | FAIL |

## Size

| variant | MB | ratio | memory MB |
| --- | ---: | ---: | ---: |
| FP32 ONNX | 18.6 |  |  |
| cpu-fp32 | 18.7 | 1.00× | —¹ |
| cpu-fp16 | 9.4 | 0.50× | —¹ |
| cpu-int8 | 5.0 | 0.27× | 90.0 |

¹ not measured in this run

## Latency
"""

MADE = """\
## How it was made

```sh
qconvert build lite0.onnx --images calib --eval val
```

| | |
| --- | --- |
| tool | qconvert 0.1.0 |
| created | 2026-11-21T14:02:11Z |
| cpu | AMD EPYC 9454, 16 cores |
| onnxruntime | 1.31.1 |
| calibration | 200 images of `calib`, list cdcdcdcdcdcd |
| evaluation | 300 images of `val`, list efefefefefef |
| seconds | export 4.1, build 12.0 |

| engine | path | sha256 | built in | built with |
| --- | --- | --- | ---: | --- |
| cpu-fp32 | `engines/cpu-fp32` | abababababab | 1.2 s | onnxruntime 1.31 |
| cpu-fp16 | `engines/cpu-fp16` | abababababab | 1.2 s | onnxruntime 1.31 |
| cpu-int8 | `engines/cpu-int8` | abababababab | 1.2 s | onnxruntime 1.31 |
"""


def test_markdown_starts_with_the_verdict_and_ends_with_provenance() -> None:
    text = markdown.render_markdown(conclude(reports.measured(), GateConfig(max_drop=0.2)))
    assert text.startswith(HEAD)
    assert text.endswith(MADE)
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Gates",
        "## Size",
        "## Latency",
        "## Accuracy, % of 300 images",
        "## Notes",
        "## Where it runs",
        "## Not quantized",
        "## How it was made",
    ]


@pytest.mark.parametrize("shape", SHAPES.values())
def test_markdown_rows_have_as_many_cells_as_the_header(shape: Callable[[], Report]) -> None:
    text = markdown.render_markdown(conclude(shape(), GateConfig(max_drop=1.0, max_latency=5.0)))
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") - row.count("\\|") for row in rows}) <= 1


def test_empty_parts_are_left_out_of_markdown() -> None:
    text = markdown.render_markdown(conclude(reports.report(seconds={}), GateConfig()))
    for title in ("## Gates", "## Notes", "## Not quantized", "seconds", "| engine |"):
        assert title not in text


def test_markdown_syntax_is_escaped() -> None:
    assert markdown.escape_text("a*b_c <img> [x](y)") == r"a\*b\_c \<img> \[x\](y)"
    assert markdown.escape_text("`a*b` and *c*") == r"`a*b` and \*c\*"
    assert markdown.escape_text("odd ` one_") == r"odd \` one\_"
    assert markdown.escape_text("two\nlines") == "two lines"
    assert markdown.escape_cell("a|b `c|d`") == r"a\|b `c\|d`"


def test_newlines_and_pipes_in_reasons_do_not_break_a_table() -> None:
    why = {"latency": "line one\n| line | two <b>"}
    report = reports.report(reports.variant("cuda-fp16", 9.0, None, unmeasured=why))
    text = markdown.table_markdown(tables.latency_table(report))
    assert text.splitlines()[-1] == r"¹ line one | line | two \<b>"


def test_backticks_in_a_command_do_not_close_the_code_block() -> None:
    report = replace(reports.measured(), command="qconvert build '```' x")
    assert "````sh\nqconvert build '```' x\n````" in markdown.render_markdown(report)
