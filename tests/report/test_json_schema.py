"""The schema of the report is that of the files: nothing more and nothing less."""

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
    made = json_file.json_schema()
    for part in (made, *made["$defs"].values()):
        part["additionalProperties"] = False
    return made


def valid(told: object) -> bool:
    return bool(jsonschema.Draft202012Validator(strict()).is_valid(told))


@pytest.mark.parametrize("shape", SHAPES.values())
def test_a_report_fits_it_with_every_field(shape: Callable[[], Report]) -> None:
    assert valid(json.loads(json_file.dumps(conclude(shape(), GateConfig(max_drop=1.0)))))


def test_the_report_of_a_real_run_fits_it(shared_run: Path) -> None:
    told = json.loads((shared_run / "run/report.json").read_text(encoding="utf-8"))
    assert any(variant["layers"] for variant in told["variants"])
    assert valid(told)


def test_a_field_that_is_missing_misspelt_or_of_another_type_does_not(shared_run: Path) -> None:
    told = json.loads((shared_run / "run/report.json").read_text(encoding="utf-8"))
    variant = told["variants"][0]
    for wrong in ({"quantized": None}, {"quantised": 1}, {"name": 3}):
        assert not valid({**told, "variants": [{**variant, **wrong}]})
    del told["verdict"]
    assert not valid(told)
