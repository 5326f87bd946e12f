"""The JSON file holds everything, is deterministic, survives a round trip, and fits its schema."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qconvert.core.config import GateConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.report import json_file
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report import reports
from tests.report.test_tables import SHAPES


@pytest.mark.parametrize("shape", SHAPES.values())
def test_report_survives_a_round_trip(shape: Callable[[], Report]) -> None:
    report = conclude(shape(), GateConfig(max_drop=1.0))
    text = json_file.dumps(report)
    again = json_file.loads(text, "report.json")
    assert again == report
    assert json_file.dumps(again) == text


def test_json_keys_are_those_that_scripts_read() -> None:
    data = json.loads(json_file.dumps(conclude(reports.measured(), GateConfig(max_drop=1.0))))
    assert next(iter(data)) == "schema"
    int8 = data["variants"][2]
    assert (int8["name"], int8["backend"], int8["precision"]) == ("cpu-int8", "cpu", "int8")
    assert int8["engine"]["bytes"] == 5_050_000
    assert int8["engine"]["ratio"] == pytest.approx(0.27, abs=0.001)
    assert int8["accuracy"]["n"] == 300
    assert int8["accuracy"]["top1"] == 88.0
    assert (int8["accuracy"]["delta_pp"], int8["accuracy"]["half_width_pp"]) == (-0.33, 1.12)
    assert int8["unquantized"][0] == {"node": "/head/0", "op": "Gemm", "reason": "answers in float"}
    assert data["gates"][1]["passed"] is True
    assert (data["best"], data["baseline"]["top1"]) == ("cpu-int8", 88.33)


def test_latency_json_has_samples_and_statistics() -> None:
    first = json_file.to_json(reports.measured())["variants"][2]["latency"][0]
    assert first["samples_ms"] == [9.9, 10.0, 10.1, 9.8, 10.2]
    assert (first["batch"], first["device_only"]) == (1, False)
    assert (first["median_ms"], first["min_ms"]) == (10.0, 9.8)
    assert first["speedup"] == pytest.approx(2.4)
    assert first["images_per_second"] == pytest.approx(100)
    assert first["spread_ms"] == pytest.approx(0.148, abs=0.001)
    assert 10.0 < first["p90_ms"] < first["p95_ms"] < first["p99_ms"] < 10.2


def test_infinity_and_nan_are_null_and_listed() -> None:
    report = reports.with_int8(latency=(reports.timing(float("nan")),))
    data = json.loads(json_file.dumps(report))
    assert data["variants"][0]["accuracy"]["sqnr_db"] is None
    assert data["not_finite"]["/variants/0/accuracy/sqnr_db"] == "inf"
    assert data["not_finite"]["/variants/2/latency/0/samples_ms/1"] == "nan"
    assert json_file.loads(json_file.dumps(report), "x").variants[0].accuracy == (
        report.variants[0].accuracy
    )


def test_keys_with_pointer_characters_survive_a_round_trip() -> None:
    report = replace(reports.measured(), config={"a/b~c": [1.0]}, seconds={"a/b~c": float("inf")})
    assert json_file.loads(json_file.dumps(report), "x") == report


def test_unknown_keys_are_ignored() -> None:
    data = json_file.to_json(reports.regression())
    data["layers"] = [{"sqnr": 1.0}]
    data["variants"][0]["colour"] = "blue"
    text = json.dumps({**data, "not_finite": {}})
    assert json_file.loads(text, "x").variants[1] == reports.regression().variants[1]


def test_newer_schema_is_rejected() -> None:
    text = json_file.dumps(reports.measured()).replace('"schema": 2', '"schema": 7')
    with pytest.raises(QConvertError, match="has report schema 7") as caught:
        json_file.loads(text, "run/report.json")
    assert "version" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"schema": 1}', '{"schema": 1, "variants": 3}', "nonsense"]
)
def test_text_other_than_report_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="is not a report"):
        json_file.loads(text, "x.json")


def test_invalid_field_is_named() -> None:
    text = json_file.dumps(reports.measured()).replace('"backend": "cpu"', '"backend": 5')
    with pytest.raises(UsageError) as caught:
        json_file.loads(text, "x.json")
    assert caught.value.details[0].startswith("variants.0.backend")


@pytest.mark.parametrize(
    "pointers", ['{"/variants/99/x": "inf"}', '{"nowhere": "inf"}', '{"/tool": "much"}', "[1]"]
)
def test_invalid_not_finite_pointers_are_rejected(pointers: str) -> None:
    data = json_file.to_json(reports.unrated())
    text = json.dumps(data)[:-1] + f', "not_finite": {pointers}}}'
    with pytest.raises(UsageError):
        json_file.loads(text, "x.json")


def test_missing_report_file_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        json_file.load(tmp_path / "report.json")
    assert "qconvert build" in caught.value.hint
    (tmp_path / "report.json").write_text(json_file.dumps(reports.measured()), encoding="utf-8")
    assert json_file.load(tmp_path / "report.json") == reports.measured()


def strict() -> dict[str, Any]:
    """Return the schema, which otherwise lets newer versions add fields, closed."""
    schema = json_file.json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["additionalProperties"] = False
    return schema


def valid(data: object) -> bool:
    return bool(jsonschema.Draft202012Validator(strict()).is_valid(data))


@pytest.mark.parametrize("shape", SHAPES.values())
def test_report_shapes_fit_schema(shape: Callable[[], Report]) -> None:
    assert valid(json.loads(json_file.dumps(conclude(shape(), GateConfig(max_drop=1.0)))))


def test_report_of_a_real_run_fits_the_schema(shared_run: Path) -> None:
    data = json.loads((shared_run / "run/report.json").read_text(encoding="utf-8"))
    assert any(variant["layers"] for variant in data["variants"])
    assert valid(data)


def test_schema_rejects_missing_misspelt_and_mistyped_fields(shared_run: Path) -> None:
    data = json.loads((shared_run / "run/report.json").read_text(encoding="utf-8"))
    variant = data["variants"][0]
    for wrong in ({"quantized": None}, {"quantised": 1}, {"name": 3}):
        assert not valid({**data, "variants": [{**variant, **wrong}]})
    del data["verdict"]
    assert not valid(data)
