"""The tables of layers and of searches for mixed precision, in every format."""

import csv
import io
import math
from dataclasses import replace

import pytest

from qconvert.cli import console
from qconvert.core.config import GateConfig
from qconvert.measure import layer_errors
from qconvert.measure.layer_errors import LayerError
from qconvert.measure.mixed_result import (
    BlockGain,
    BlockTime,
    MixedResult,
    PredictionLoss,
    SearchStep,
)
from qconvert.report import json_file, search_tables, tables
from qconvert.report.html import render_html
from qconvert.report.markdown import render_markdown
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report import reports
from tests.report.evidence import layer

EXACT = layer("exact", math.inf, math.inf)
SMALL, LARGE = layer("small", 40.0, 40.0), layer("large", 34.0, 34.0)
BROKEN = replace(layer("broken", -math.inf, -math.inf), cosine=None)
UNKNOWN = replace(layer("unknown", 0.0, 30.0), made_db=None)


def test_overflowing_layer_is_the_worst_and_not_finite() -> None:
    layers = (EXACT, SMALL, BROKEN, LARGE)
    assert layer_errors.worst_layers(layers, 2) == [BROKEN, LARGE]
    rows = {row[0]: row for row in tables.layer_table(layers).rows}
    assert rows["broken"][3:6] == ("not finite", "not finite", "████████")
    # The other layers are drawn as without it.
    assert rows["large"][5] == "████████"
    assert rows["small"][5] == "████"


def test_overflowing_layers_survive_every_format() -> None:
    report = reports.with_int8(layers=(EXACT, SMALL, BROKEN, LARGE))
    assert json_file.loads(json_file.dumps(report), "x") == report
    assert "not finite" in render_html(report, {})
    assert "not finite dB" not in render_html(report, {})
    rows = list(csv.DictReader(io.StringIO(tables.layers_csv({"cpu-int8": (EXACT, BROKEN)}))))
    assert [float(row["made_db"]) for row in rows] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((EXACT, EXACT), "there is no error"),
        ((EXACT, UNKNOWN), "it is unknown which layers make an error"),
        (
            (EXACT, BROKEN, LARGE),
            "the largest errors are made by `broken` (not finite), `large` (34.0 dB)",
        ),
    ],
)
def test_layer_summary_distinguishes_no_error_from_unknown(
    layers: tuple[LayerError, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.show_layer_errors(layers)
    assert capsys.readouterr().out.splitlines()[-1] == words


def loss(pp: float) -> PredictionLoss:
    return PredictionLoss(pp, 0.65, "certainty", 300, 99.0)


INT8 = SearchStep((), 0.0, 0.004, loss(0.2), loss(0.3), ms=2.0)
CHOSEN = SearchStep(("stem",), 0.03, 0.002, loss(0.0), loss(0.01), ms=2.5)
MIX = MixedResult(
    outcome="mixed",
    why="one block lifted to fp32, 3.0 % of the compute",
    budget=0.1,
    by="certainty",
    rest="fp32",
    int8=INT8,
    gains=(BlockGain("head", 1, 0.1, -0.0004, 0.0001), BlockGain("stem", 2, 0.03, 0.002, 0.001)),
    steps=(CHOSEN, SearchStep(("stem", "head"), 0.13, 0.001, loss(0.0))),
    chosen=CHOSEN,
    float_ms=5.0,
)


def with_mix() -> Report:
    return conclude(replace(reports.measured(), mixes={"cpu": MIX}), GateConfig())


def test_block_table_has_the_error_each_block_removes() -> None:
    assert search_tables.block_table(MIX).rows == [
        ("stem", "3.00", "+50.0 ± 25.0", "kept in fp32"),
        ("head", "10.00", "-10.0 ± 2.5", ""),
    ]


def test_time_table_has_the_blocks_that_float_saves_most_first() -> None:
    times = (BlockTime("head", 0.5, 0.75), BlockTime("stem", 2.0, 1.25))
    result = replace(MIX, times=times, faster=CHOSEN)
    table, *others = search_tables.trial_tables(result)
    assert table.rows == [
        ("stem", "2.000", "1.250", "kept in fp32"),
        ("head", "0.500", "0.750", ""),
    ]
    assert table.title == "Blocks by what float saves, 2 of 2"
    assert len(others) == 2
    assert search_tables.trial_tables(replace(result, gains=())) == [table]


def test_trial_table_marks_the_chosen_set() -> None:
    rows = search_tables.trial_table(MIX).rows
    assert rows[0] == ("0", "0.00", "0.00400", "0.20", "0.30 ± 0.65", "2.00", "")
    assert rows[1] == ("1", "3.00", "0.00200", "0.00", "0.01 ± 0.65", "2.50", "◆")
    assert rows[2][4:] == ("—", "", "")


def test_search_result_table_has_the_reason_for_missing_latencies() -> None:
    blind = replace(MIX, int8=replace(INT8, ms=None), chosen=None, float_ms=None, untimed="no GPU")
    table = search_tables.search_result_table(blind, {"int8": 5_000_000, "fp32": 18_000_000})
    assert [row[2] for row in table.rows] == ["—¹", "—¹"]
    assert table.footnotes == ("¹ no GPU",)


def test_search_is_in_markdown_and_html() -> None:
    report = with_mix()
    for text in (render_markdown(report), render_html(report, {})):
        assert "Sets tried on 300 images" in text
        assert "stem" in text
    assert "Search for mixed precision on cpu" in render_html(report, {})
    assert "Mixed precision" not in render_html(conclude(reports.measured(), GateConfig()), {})
