"""The report as JSON and back: every sample and number, beside them those that follow from them.

JSON has no infinity and no NaN: such a number is null, and `not_finite` says where and which.
Keys stand in the order of the fields; what this version does not know is passed over.
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
from qconvert.measure.stats import LatencyStats, summarize_latency
from qconvert.report import metrics
from qconvert.report.model import SCHEMA, Report

ADAPTER = pydantic.TypeAdapter(Report)

# What scripts read beside what the code says.
ACCURACY_KEYS = {"images": "n", "change_pp": "delta_pp"}
VARIANT_KEYS = {"left": "unquantized"}
LATENCY_KEYS = {"least_ms": "min_ms"}
SCHEMA_KEY = "schema"
NOT_FINITE_KEY = "not_finite"


def dumps(report: Report) -> str:
    """Return the report as JSON text; equal reports give equal text."""
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    return sanitize_json(text) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as the plain values that JSON has."""
    told: dict[str, Any] = ADAPTER.dump_python(report, mode="json")
    told = {SCHEMA_KEY: told[SCHEMA_KEY], **told}
    for variant, plain in zip(report.variants, told["variants"], strict=True):
        if variant.engine is not None:
            plain["engine"]["ratio"] = metrics.size_ratio(report, variant)
        for latency, each in zip(variant.latency, plain["latency"], strict=True):
            each["device_only"] = latency.where == "device"
            if latency.samples_ms:
                each.update(asdict(summarize_latency(latency)))
                each["speedup"] = metrics.speedup(report, variant, latency)
    _rename_keys(told, back=False)
    strange = dict(_not_finite(told, ""))
    for pointer in strange:
        _set_at_pointer(told, pointer, None)
    return {**told, NOT_FINITE_KEY: strange} if strange else told


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
    """Read a report; `name` says in errors where it came from."""
    try:
        told = json.loads(text)
        schema = told.get(SCHEMA_KEY)
        if isinstance(schema, int) and not 1 <= schema <= SCHEMA:
            raise QConvertError(
                f"`{name}` has report schema {schema}, this version reads 1 to {SCHEMA}",
                hint="read it with the version of qconvert named under `tool` in the file",
            )
        for pointer, number in told.pop(NOT_FINITE_KEY, {}).items():
            _set_at_pointer(told, pointer, float(number))
        _rename_keys(told, back=True)
        # What an older file does not have is as good as not measured.
        told[SCHEMA_KEY] = SCHEMA
        return ADAPTER.validate_python(told)
    except pydantic.ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise _not_a_report(name, wrong[:5]) from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _not_a_report(name, [first_line(error)]) from None


def _not_a_report(name: str, wrong: list[str]) -> UsageError:
    return UsageError(
        f"`{name}` is not a report",
        details=wrong,
        hint="name a run folder of `qconvert build`, or the `report.json` in it",
    )


def _rename_keys(told: dict[str, Any], *, back: bool) -> None:
    """Change keys between the words of the code and those of the file, in place."""
    accuracies = [told.get("baseline")]
    for variant in told["variants"]:
        accuracies.append(variant.get("accuracy"))
        _rename_dict_keys(variant, VARIANT_KEYS, back)
        for latency in variant.get("latency", ()):
            _rename_dict_keys(latency, LATENCY_KEYS, back)
    for each in accuracies:
        if each is not None:
            _rename_dict_keys(each, ACCURACY_KEYS, back)


def _rename_dict_keys(given: dict[str, Any], names: dict[str, str], back: bool) -> None:
    names = {new: old for old, new in names.items()} if back else names
    renamed = {names.get(key, key): value for key, value in given.items()}
    given.clear()
    given.update(renamed)


def _not_finite(value: object, pointer: str) -> Iterator[tuple[str, str]]:
    """Yield the JSON pointer (RFC 6901) of every number that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        yield pointer, str(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            name = str(key).replace("~", "~0").replace("/", "~1")
            yield from _not_finite(each, f"{pointer}/{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _not_finite(each, f"{pointer}/{index}")


def _set_at_pointer(told: Any, pointer: str, number: float | None) -> None:
    """Replace the number at a pointer; one that is not there is a LookupError."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    for part in parents:
        told = told[int(part)] if isinstance(told, list) else told[part]
    key = int(last) if isinstance(told, list) else last
    if isinstance(told, dict) and key not in told:
        raise LookupError(f"`{NOT_FINITE_KEY}` names `{pointer}`, which is not there")
    told[key] = number


SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_TITLE = "Report of qconvert"
# What the file has beside the fields of the tree, which follows from them.
NUMBER_SCHEMA = {"type": ["number", "null"]}
RATIO_SCHEMA = {**NUMBER_SCHEMA, "description": "size relative to fp32, as in the tables"}
SPEEDUP_SCHEMA = {**NUMBER_SCHEMA, "description": "times fp32 of the backend, as in the tables"}
DEVICE_SCHEMA = {"type": "boolean", "description": "whether inputs lay on the device already"}
NOT_FINITE_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "numbers that JSON has no word for and that are null here: a JSON pointer to "
    "each, and what it is: `inf`, `-inf` or `nan`; absent where there are none",
}


def json_schema() -> dict[str, Any]:
    """Return the schema; every field is always there but those that are said to be absent."""
    made: dict[str, Any] = ADAPTER.json_schema(mode="serialization")
    parts = made["$defs"]
    for part in (made, *parts.values()):
        part["properties"] = {
            name: _without_titles(each) for name, each in part["properties"].items()
        }
        part["required"] = list(part["properties"])
        part["description"] = part["description"].replace("None", "null")
    for name, words in (("Accuracy", ACCURACY_KEYS), ("Variant", VARIANT_KEYS)):
        _rename_properties(parts[name], words)
    parts["EngineInfo"]["properties"]["ratio"] = RATIO_SCHEMA
    parts["Latency"]["properties"].update(
        device_only=DEVICE_SCHEMA, **{_stats_key(each): _stats_type(each) for each in dataclasses.fields(LatencyStats)},
        speedup=SPEEDUP_SCHEMA,
    )  # fmt: skip
    made["properties"] = {
        SCHEMA_KEY: made["properties"].pop(SCHEMA_KEY),
        **made["properties"],
    }
    made["properties"][NOT_FINITE_KEY] = NOT_FINITE_SCHEMA
    return {"$schema": SCHEMA_DIALECT, **made, "title": SCHEMA_TITLE}


def _without_titles(told: Any) -> Any:
    """Return a type without titles and defaults; any number may be null, as it may be infinite."""
    if isinstance(told, list):
        return [_without_titles(each) for each in told]
    if not isinstance(told, dict):
        return told
    kept = {
        name: _without_titles(each)
        for name, each in told.items()
        if name not in ("title", "default")
    }
    if kept.get("type") == "number" or {"type": "number"} in told.get("anyOf", ()):
        return dict(NUMBER_SCHEMA)
    return kept


def _rename_properties(part: dict[str, Any], words: dict[str, str]) -> None:
    part["properties"] = {words.get(name, name): each for name, each in part["properties"].items()}
    part["required"] = list(part["properties"])
    for name, word in words.items():
        part["description"] = part["description"].replace(f"`{name}`", f"`{word}`")


def _stats_key(field: dataclasses.Field[Any]) -> str:
    return LATENCY_KEYS.get(field.name, field.name)


def _stats_type(field: dataclasses.Field[Any]) -> dict[str, Any]:
    return {"type": "integer"} if field.type is int else dict(NUMBER_SCHEMA)
