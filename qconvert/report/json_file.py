"""The report as JSON and back, and the JSON Schema of that file.

The file holds every sample and number, and derived values: statistics, speed-ups, ratios. JSON has
no infinity and no NaN: such a number is null, and `not_finite` lists its place and value. Keys are
in the order of the fields; unknown keys are ignored.
"""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pydantic

from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.sanitize import sanitize_json
from qconvert.measure.latency import LatencyStats, summarize_latency
from qconvert.report import metrics
from qconvert.report.model import SCHEMA, Report

ADAPTER = pydantic.TypeAdapter(Report)
NUMBER_SCHEMA = {"type": ["number", "null"]}
# What the file has beside the fields, by class.
DERIVED_SCHEMAS: dict[str, dict[str, Any]] = {
    "EngineInfo": {"ratio": {**NUMBER_SCHEMA, "description": "size relative to fp32"}},
    "Latency": {
        "device_only": {
            "type": "boolean",
            "description": "whether the inputs were on the device already",
        },
        **{
            field.name: {"type": "integer"} if field.type is int else dict(NUMBER_SCHEMA)
            for field in fields(LatencyStats)
        },
        "speedup": {**NUMBER_SCHEMA, "description": "times as fast as fp32 of the backend"},
    },
}
NOT_FINITE_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "numbers that JSON cannot write and that are null here: a JSON pointer to the "
    "number, and its value: `inf`, `-inf` or `nan`; absent where all numbers are finite",
}


def dumps(report: Report) -> str:
    """Return the report as JSON text; equal reports give equal text."""
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    return sanitize_json(text) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as the plain values of JSON."""
    data: dict[str, Any] = ADAPTER.dump_python(report, mode="json", by_alias=True)
    for variant, variant_data in zip(report.variants, data["variants"], strict=True):
        if variant.engine is not None:
            variant_data["engine"]["ratio"] = metrics.size_ratio(report, variant)
        for latency, latency_data in zip(variant.latency, variant_data["latency"], strict=True):
            latency_data["device_only"] = latency.where == "device"
            if latency.samples_ms:
                latency_data.update(asdict(summarize_latency(latency)))
                latency_data["speedup"] = metrics.speedup(report, variant, latency)
    not_finite: dict[str, str] = {}
    data = _without_not_finite(data, "", not_finite)
    return {**data, "not_finite": not_finite} if not_finite else data


def _without_not_finite(value: Any, pointer: str, not_finite: dict[str, str]) -> Any:
    """Return a value with null for infinity and NaN, and add their pointers (RFC 6901)."""
    if isinstance(value, float) and not math.isfinite(value):
        not_finite[pointer] = str(value)
        return None
    if isinstance(value, list):
        items = enumerate(value)
        return [_without_not_finite(item, f"{pointer}/{at}", not_finite) for at, item in items]
    if not isinstance(value, dict):
        return value
    names = {key: str(key).replace("~", "~0").replace("/", "~1") for key in value}
    return {
        key: _without_not_finite(item, f"{pointer}/{names[key]}", not_finite)
        for key, item in value.items()
    }


def load(path: Path) -> Report:
    """Read a report file."""
    try:
        return loads(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {getattr(error, 'strerror', '') or first_line(error)}",
            hint="`qconvert build` leaves `report.json` in its run folder",
        ) from None


def loads(text: str, name: str) -> Report:
    """Read a report; errors call it `name`."""
    try:
        data = json.loads(text)
        schema = data.get("schema")
        if isinstance(schema, int) and not 1 <= schema <= SCHEMA:
            raise QConvertError(
                f"`{name}` has report schema {schema}; this version reads 1 to {SCHEMA}",
                hint="read it with the version of qconvert named under `tool` in the file",
            )
        for pointer, number in data.pop("not_finite", {}).items():
            value, holder = float(number), data
            escaped = pointer[1:].split("/")
            *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in escaped)
            for part in parents:
                holder = holder[int(part) if isinstance(holder, list) else part]
            key = int(last) if isinstance(holder, list) else last
            if isinstance(holder, dict) and key not in holder:
                raise LookupError(f"`not_finite` names `{pointer}`, which is not there")
            holder[key] = value
        # A field that an older schema lacks has its default, which reads as not measured.
        return ADAPTER.validate_python({**data, "schema": SCHEMA})
    except pydantic.ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()[:5]
        ]
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        problems = [first_line(error)]
    raise UsageError(
        f"`{name}` is not a report",
        details=problems,
        hint="name a run folder of `qconvert build`, or the `report.json` in it",
    )


def json_schema() -> dict[str, Any]:
    """Return the schema; every field is required but those described as absent."""
    schema: dict[str, Any] = ADAPTER.json_schema(mode="serialization")
    definitions = schema["$defs"]
    for part in (schema, *definitions.values()):
        part["properties"] = {
            name: _without_titles(value) for name, value in part["properties"].items()
        }
        part["required"] = list(part["properties"])
        for name, key in {"None": "null", "run_notes": "heard", "change_pp": "delta_pp"}.items():
            part["description"] = part["description"].replace(name, key)
    for name, derived in DERIVED_SCHEMAS.items():
        definitions[name]["properties"] |= derived
    fields_schema = schema["properties"]
    schema["properties"] = {
        "schema": fields_schema.pop("schema"),
        **fields_schema,
        "not_finite": NOT_FINITE_SCHEMA,
    }
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **schema, "title": "Report of qconvert"}


def _without_titles(schema: Any) -> Any:
    """Drop titles and defaults; any number may be null, since it may be infinite."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number" or {"type": "number"} in schema.get("anyOf", ()):
        return dict(NUMBER_SCHEMA)
    return {
        name: _without_titles(value)
        for name, value in schema.items()
        if name not in ("title", "default")
    }
