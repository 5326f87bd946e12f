"""The JSON holds everything, is the same for the same report, and comes back as it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qconvert.core.config import GateConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.report import json_file
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report import reports
from tests.report.test_tables import SHAPES


@pytest.mark.parametrize("shape", SHAPES.values())
def test_a_report_comes_back_as_it_was(shape: Callable[[], Report]) -> None:
    report = conclude(shape(), GateConfig(max_drop=1.0))
    text = json_file.dumps(report)
    again = json_file.loads(text, "report.json")
    assert again == report
    assert json_file.dumps(again) == text


def test_fields_have_the_names_that_scripts_read() -> None:
    told = json.loads(json_file.dumps(conclude(reports.measured(), GateConfig(max_drop=1.0))))
    assert next(iter(told)) == "schema"
    int8 = told["variants"][2]
    assert (int8["name"], int8["backend"], int8["precision"]) == ("cpu-int8", "cpu", "int8")
    assert int8["engine"]["bytes"] == 5_050_000
    assert int8["engine"]["ratio"] == pytest.approx(0.27, abs=0.001)
    assert int8["accuracy"]["n"] == 300
    assert int8["accuracy"]["top1"] == 88.0
    assert (int8["accuracy"]["delta_pp"], int8["accuracy"]["half_width_pp"]) == (-0.33, 1.12)
    assert int8["unquantized"][0] == {
        "node": "/head/0",
        "op": "Gemm",
        "reason": "answers in float",
    }
    assert told["gates"][1]["passed"] is True
    assert (told["best"], told["baseline"]["top1"]) == ("cpu-int8", 88.33)


def test_a_latency_has_every_sample_and_what_follows() -> None:
    first = json_file.to_json(reports.measured())["variants"][2]["latency"][0]
    assert first["samples_ms"] == [9.9, 10.0, 10.1, 9.8, 10.2]
    assert (first["batch"], first["device_only"]) == (1, False)
    assert (first["median_ms"], first["min_ms"]) == (10.0, 9.8)
    assert first["speedup"] == pytest.approx(2.4)
    assert first["images_per_second"] == pytest.approx(100)
    assert first["spread_ms"] == pytest.approx(0.148, abs=0.001)
    assert 10.0 < first["p90_ms"] < first["p95_ms"] < first["p99_ms"] < 10.2


def test_numbers_that_json_lacks_are_null_and_named() -> None:
    report = reports.with_int8(latency=(reports.took(float("nan")),))
    told = json.loads(json_file.dumps(report))
    assert told["variants"][0]["accuracy"]["sqnr_db"] is None
    assert told["not_finite"]["/variants/0/accuracy/sqnr_db"] == "inf"
    assert told["not_finite"]["/variants/2/latency/0/samples_ms/1"] == "nan"
    assert json_file.loads(json_file.dumps(report), "x").variants[0].accuracy == (
        report.variants[0].accuracy
    )


def test_odd_keys_survive() -> None:
    report = replace(reports.measured(), config={"a/b~c": [1.0]}, seconds={"a/b~c": float("inf")})
    assert json_file.loads(json_file.dumps(report), "x") == report


def test_what_a_later_version_adds_is_passed_over() -> None:
    told = json_file.to_json(reports.regression())
    told["layers"] = [{"sqnr": 1.0}]
    told["variants"][0]["colour"] = "blue"
    text = json.dumps({**told, "not_finite": {}})
    assert json_file.loads(text, "x").variants[1] == reports.regression().variants[1]


def test_another_schema_is_refused() -> None:
    text = json_file.dumps(reports.measured()).replace('"schema": 2', '"schema": 7')
    with pytest.raises(QConvertError, match="has report schema 7") as caught:
        json_file.loads(text, "run/report.json")
    assert "version" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"schema": 1}', '{"schema": 1, "variants": 3}', "nonsense"],
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a report"):
        json_file.loads(text, "x.json")


def test_a_damaged_report_names_the_field() -> None:
    text = json_file.dumps(reports.measured()).replace('"backend": "cpu"', '"backend": 5')
    with pytest.raises(UsageError) as caught:
        json_file.loads(text, "x.json")
    assert caught.value.details[0].startswith("variants.0.backend")


@pytest.mark.parametrize(
    "pointers", ['{"/variants/99/x": "inf"}', '{"nowhere": "inf"}', '{"/tool": "much"}', "[1]"]
)
def test_pointers_to_nowhere_are_refused(pointers: str) -> None:
    told = json_file.to_json(reports.unrated())
    text = json.dumps(told)[:-1] + f', "not_finite": {pointers}}}'
    with pytest.raises(UsageError):
        json_file.loads(text, "x.json")


def test_a_missing_file_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        json_file.load(tmp_path / "report.json")
    assert "qconvert build" in caught.value.hint
    (tmp_path / "report.json").write_text(json_file.dumps(reports.measured()), encoding="utf-8")
    assert json_file.load(tmp_path / "report.json") == reports.measured()
