"""The JSON Schema of a report, as `as_json` writes it."""

import dataclasses
from typing import Any

from qconvert.measure.stats import Stats
from qconvert.report import as_json

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "Report of qconvert"
# What the file has beside the fields of the tree, which follows from them.
NUMBER = {"type": ["number", "null"]}
RATIO = {**NUMBER, "description": "size relative to fp32, as in the tables"}
SPEEDUP = {**NUMBER, "description": "times fp32 of the backend, as in the tables"}
DEVICE = {"type": "boolean", "description": "whether inputs lay on the device already"}
NOT_FINITE = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "numbers that JSON has no word for and that are null here: a JSON pointer to "
    "each, and what it is: `inf`, `-inf` or `nan`; absent where there are none",
}


def schema() -> dict[str, Any]:
    """Return the schema; every field is always there but those that are said to be absent."""
    made: dict[str, Any] = as_json.ADAPTER.json_schema(mode="serialization")
    parts = made["$defs"]
    for part in (made, *parts.values()):
        part["properties"] = {name: _plain(each) for name, each in part["properties"].items()}
        part["required"] = list(part["properties"])
        part["description"] = part["description"].replace("None", "null")
    for name, words in (("Accuracy", as_json.ACCURACY), ("Variant", as_json.VARIANT)):
        _rename(parts[name], words)
    parts["EngineInfo"]["properties"]["ratio"] = RATIO
    parts["Latency"]["properties"].update(
        device_only=DEVICE, **{_spelled(each): _of(each) for each in dataclasses.fields(Stats)},
        speedup=SPEEDUP,
    )  # fmt: skip
    made["properties"] = {
        as_json.FIRST: made["properties"].pop(as_json.FIRST),
        **made["properties"],
    }
    made["properties"][as_json.NOT_FINITE] = NOT_FINITE
    return {"$schema": DIALECT, **made, "title": TITLE}


def _plain(told: Any) -> Any:
    """Return a type without titles and defaults; any number may be null, as it may be infinite."""
    if isinstance(told, list):
        return [_plain(each) for each in told]
    if not isinstance(told, dict):
        return told
    kept = {name: _plain(each) for name, each in told.items() if name not in ("title", "default")}
    if kept.get("type") == "number" or {"type": "number"} in told.get("anyOf", ()):
        return dict(NUMBER)
    return kept


def _rename(part: dict[str, Any], words: dict[str, str]) -> None:
    part["properties"] = {words.get(name, name): each for name, each in part["properties"].items()}
    part["required"] = list(part["properties"])
    for name, word in words.items():
        part["description"] = part["description"].replace(f"`{name}`", f"`{word}`")


def _spelled(field: dataclasses.Field[Any]) -> str:
    return as_json.LATENCY.get(field.name, field.name)


def _of(field: dataclasses.Field[Any]) -> dict[str, Any]:
    return {"type": "integer"} if field.type is int else dict(NUMBER)
