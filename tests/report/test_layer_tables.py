"""Layers by their errors; one that overflows is the worst."""

import csv
import io
import math
from dataclasses import replace

import pytest

from qconvert.cli import console, views
from qconvert.measure import layer_errors
from qconvert.measure.layer_errors import LayerError
from qconvert.report import json_file, tables
from qconvert.report.html import render_html
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
    # The others are drawn as they are without it.
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
        ((EXACT, EXACT), "there is no error at all"),
        ((EXACT, UNKNOWN), "which layers make an error is not known"),
        (
            (EXACT, BROKEN, LARGE),
            "the largest errors are made by `broken` (not finite), `large` (34.0 dB)",
        ),
    ],
)
def test_layer_summary_distinguishes_no_error_from_unknown(
    layers: tuple[LayerError, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console._stdout_console.cache_clear()
    views.show_layer_errors(layers)
    assert capsys.readouterr().out.splitlines()[-1] == words
