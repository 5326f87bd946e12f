"""The report as JSON and back: every sample and number, beside them those that follow from them.

JSON has no infinity and no NaN: such a number is null, and `not_finite` says where and which.
Keys stand in the order of the fields; what this version does not know is passed over.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic

from qconvert.errors import QConvertError, UsageError, reason
from qconvert.measure.stats import stats
from qconvert.plain import plain_json
from qconvert.report import figures
from qconvert.report.model import SCHEMA, Report

ADAPTER = pydantic.TypeAdapter(Report)

# What scripts read beside what the code says.
ACCURACY = {"images": "n", "change_pp": "delta_pp"}
VARIANT = {"left": "unquantized"}
LATENCY = {"least_ms": "min_ms"}
FIRST = "schema"
NOT_FINITE = "not_finite"


def dumps(report: Report) -> str:
    """Return the report as JSON text; equal reports give equal text."""
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    return plain_json(text) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as the plain values that JSON has."""
    told: dict[str, Any] = ADAPTER.dump_python(report, mode="json")
    told = {FIRST: told[FIRST], **told}
    for variant, plain in zip(report.variants, told["variants"], strict=True):
        if variant.engine is not None:
            plain["engine"]["ratio"] = figures.size_ratio(report, variant)
        for latency, each in zip(variant.latency, plain["latency"], strict=True):
            each["device_only"] = latency.where == "device"
            if latency.samples_ms:
                each.update(asdict(stats(latency)))
                each["speedup"] = figures.speedup(report, variant, latency)
    _rename(told, back=False)
    strange = dict(_not_finite(told, ""))
    for pointer in strange:
        _put(told, pointer, None)
    return {**told, NOT_FINITE: strange} if strange else told


def load(path: Path) -> Report:
    """Read a report file."""
    try:
        return loads(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {getattr(error, 'strerror', '') or reason(error)}",
            hint="`qconvert build` leaves `report.json` in its run folder",
        ) from None


def loads(text: str, name: str) -> Report:
    """Read a report; `name` says in errors where it came from."""
    try:
        told = json.loads(text)
        schema = told.get(FIRST)
        if isinstance(schema, int) and not 1 <= schema <= SCHEMA:
            raise QConvertError(
                f"`{name}` has report schema {schema}, this version reads 1 to {SCHEMA}",
                hint="read it with the version of qconvert named under `tool` in the file",
            )
        for pointer, number in told.pop(NOT_FINITE, {}).items():
            _put(told, pointer, float(number))
        _rename(told, back=True)
        # What an older file does not have is as good as not measured.
        told[FIRST] = SCHEMA
        return ADAPTER.validate_python(told)
    except pydantic.ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise _no_report(name, wrong[:5]) from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _no_report(name, [reason(error)]) from None


def _no_report(name: str, wrong: list[str]) -> UsageError:
    return UsageError(
        f"`{name}` is not a report",
        details=wrong,
        hint="name a run folder of `qconvert build`, or the `report.json` in it",
    )


def _rename(told: dict[str, Any], *, back: bool) -> None:
    """Change keys between the words of the code and those of the file, in place."""
    accuracies = [told.get("baseline")]
    for variant in told["variants"]:
        accuracies.append(variant.get("accuracy"))
        _swap(variant, VARIANT, back)
        for latency in variant.get("latency", ()):
            _swap(latency, LATENCY, back)
    for each in accuracies:
        if each is not None:
            _swap(each, ACCURACY, back)


def _swap(given: dict[str, Any], names: dict[str, str], back: bool) -> None:
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


def _put(told: Any, pointer: str, number: float | None) -> None:
    """Replace the number at a pointer; one that is not there is a LookupError."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
    for part in parents:
        told = told[int(part)] if isinstance(told, list) else told[part]
    key = int(last) if isinstance(told, list) else last
    if isinstance(told, dict) and key not in told:
        raise LookupError(f"`{NOT_FINITE}` names `{pointer}`, which is not there")
    told[key] = number
