"""The report as JSON and back, and the JSON Schema of that file.

The file holds every sample and number, beside them what follows from them: statistics, speed-ups,
ratios. JSON has no infinity and no NaN: such a number is null, and `not_finite` says where and
which. Keys stand in the order of the fields; unknown keys are ignored.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic

from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.sanitize import sanitize_json
from qconvert.measure.latency import LatencyStats, summarize_latency
from qconvert.report import metrics
from qconvert.report.model import SCHEMA, Report

ADAPTER = pydantic.TypeAdapter(Report)

# Fields whose key in the file differs from their name, by class.
REPORT_KEYS = {"run_notes": "heard"}
ACCURACY_KEYS = {"images": "n", "change_pp": "delta_pp"}
SCHEMA_KEY = "schema"
NOT_FINITE_KEY = "not_finite"

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
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
            for field in dataclasses.fields(LatencyStats)
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
    data: dict[str, Any] = ADAPTER.dump_python(report, mode="json")
    for variant, variant_data in zip(report.variants, data["variants"], strict=True):
        if variant.engine is not None:
            variant_data["engine"]["ratio"] = metrics.size_ratio(report, variant)
        for latency, latency_data in zip(variant.latency, variant_data["latency"], strict=True):
            latency_data["device_only"] = latency.where == "device"
            if latency.samples_ms:
                latency_data.update(asdict(summarize_latency(latency)))
                latency_data["speedup"] = metrics.speedup(report, variant, latency)
    data = _rename_keys(data, reverse=False)
    data = {SCHEMA_KEY: data[SCHEMA_KEY], **data}
    not_finite = dict(_not_finite(data, ""))
    for pointer in not_finite:
        _set_at_pointer(data, pointer, None)
    return {**data, NOT_FINITE_KEY: not_finite} if not_finite else data


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
        schema = data.get(SCHEMA_KEY)
        if isinstance(schema, int) and not 1 <= schema <= SCHEMA:
            raise QConvertError(
                f"`{name}` has report schema {schema}, this version reads 1 to {SCHEMA}",
                hint="read it with the version of qconvert named under `tool` in the file",
            )
        return ADAPTER.validate_python(field_values(data))
    except pydantic.ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        ]
        raise _not_a_report(name, problems[:5]) from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _not_a_report(name, [first_line(error)]) from None


def field_values(data: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a report file under the names of the fields."""
    for pointer, number in data.pop(NOT_FINITE_KEY, {}).items():
        _set_at_pointer(data, pointer, float(number))
    # A field that an older schema lacks has its default, which reads as not measured.
    return {**_rename_keys(data, reverse=True), SCHEMA_KEY: SCHEMA}


def json_schema() -> dict[str, Any]:
    """Return the schema; every field is required but those described as absent."""
    schema: dict[str, Any] = ADAPTER.json_schema(mode="serialization")
    definitions = schema["$defs"]
    for part in (schema, *definitions.values()):
        part["properties"] = {
            name: _without_titles(value) for name, value in part["properties"].items()
        }
        part["description"] = part["description"].replace("None", "null")
    _rename_properties(schema, REPORT_KEYS)
    _rename_properties(definitions["Accuracy"], ACCURACY_KEYS)
    for part in (schema, *definitions.values()):
        part["required"] = list(part["properties"])
    for name, derived in DERIVED_SCHEMAS.items():
        definitions[name]["properties"] |= derived
    properties = schema["properties"]
    schema["properties"] = {
        SCHEMA_KEY: properties.pop(SCHEMA_KEY), **properties, NOT_FINITE_KEY: NOT_FINITE_SCHEMA
    }  # fmt: skip
    return {"$schema": SCHEMA_DIALECT, **schema, "title": "Report of qconvert"}


def _not_a_report(name: str, problems: list[str]) -> UsageError:
    return UsageError(
        f"`{name}` is not a report",
        details=problems,
        hint="name a run folder of `qconvert build`, or the `report.json` in it",
    )


def _rename_keys(data: dict[str, Any], *, reverse: bool) -> dict[str, Any]:
    """Return the report with the keys of the file, or in reverse with the names of the fields."""

    def renamed(values: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
        names = {key: field for field, key in keys.items()} if reverse else keys
        return {names.get(name, name): value for name, value in values.items()}

    data = renamed(data, REPORT_KEYS)
    for part, name in [
        (data, "baseline"),
        *((variant, "accuracy") for variant in data["variants"]),
    ]:
        if part.get(name) is not None:
            part[name] = renamed(part[name], ACCURACY_KEYS)
    return data


def _not_finite(value: object, pointer: str) -> Iterator[tuple[str, str]]:
    """Yield the JSON pointer (RFC 6901) of every number that JSON cannot write."""
    if isinstance(value, float) and not math.isfinite(value):
        yield pointer, str(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            yield from _not_finite(item, f"{pointer}/{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{pointer}/{index}")


def _set_at_pointer(data: Any, pointer: str, number: float | None) -> None:
    """Replace the number at a pointer; raise LookupError where there is none."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    for part in parents:
        data = data[int(part)] if isinstance(data, list) else data[part]
    key = int(last) if isinstance(data, list) else last
    if isinstance(data, dict) and key not in data:
        raise LookupError(f"`{NOT_FINITE_KEY}` names `{pointer}`, which is not there")
    data[key] = number


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


def _rename_properties(part: dict[str, Any], keys: dict[str, str]) -> None:
    part["properties"] = {keys.get(name, name): value for name, value in part["properties"].items()}
    for name, key in keys.items():
        part["description"] = part["description"].replace(f"`{name}`", f"`{key}`")
