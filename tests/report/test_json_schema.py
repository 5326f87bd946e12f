"""The JSON Schema describes report files: no field more, no field less."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qconvert.core.config import GateConfig
from qconvert.report import json_file
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests.report.test_tables import SHAPES


def strict() -> dict[str, Any]:
    """Return the schema, which otherwise lets newer versions add fields, closed."""
    schema = json_file.json_schema()
    for part in (schema, *schema["$defs"].values()):
        part["additionalProperties"] = False
    return schema


def valid(data: object) -> bool:
    return bool(jsonschema.Draft202012Validator(strict()).is_valid(data))


@pytest.mark.parametrize("shape", SHAPES.values())
def test_every_report_shape_fits_the_schema(shape: Callable[[], Report]) -> None:
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
