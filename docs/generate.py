"""Write the reference pages and tables from the code, or list the stale ones with `--check`."""

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pydantic

from qconvert import backends
from qconvert.cli import COMMANDS, main
from qconvert.core import config
from qconvert.core.formats import FORMATS
from qconvert.report import json_file

REFERENCE = Path(__file__).parent / "reference"
FORMATS_PAGE = "../concepts/formats.md"
NOTE = "<!-- Written by docs/generate.py; change the code, then run `make docs`. -->\n"


def commands() -> str:
    """Return the help of every command, formatted for an 80-column terminal."""
    parts = [NOTE, "# Commands\n", block([])]
    for name in COMMANDS:
        parts += [f"## {name}\n", block([name])]
    return "\n".join(parts)


def block(path: list[str]) -> str:
    """Return one help page as a code block."""
    text = io.StringIO()
    with redirect_stdout(text):
        main.main(args=[*path, "--help"], prog_name="qconvert", standalone_mode=False)
    return f"```text\n{text.getvalue().rstrip()}\n```\n"


def settings() -> str:
    """Return every setting with its type, default and meaning, table by table."""
    lines = [NOTE, "# Settings\n"]
    lines += [
        "`qconvert.toml` in the working folder is read by every command that has settings;",
        "`--config` names another file, `--set KEY=VALUE` and the options win over it.",
        "Where a command goes on with a run, the run's own settings lie below what is named,",
        "and the file in the working folder is not read.",
        "Relative paths are relative to the file. Editors complete it with",
        "[qconvert.schema.json](qconvert.schema.json). `qconvert init` writes one.\n",
    ]
    table = None
    for option in config.option_table().values():
        if option.table != table:
            table = option.table
            lines += [f"\n## {f'[{table}]' if table else 'top level'}\n"]
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        kind, meaning = config.type_name(option.type).replace("|", "\\|"), option.description
        lines.append(f"| `{option.key}` | {kind} | {default(option.default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def report() -> str:
    """Return every field of the report's JSON with its type, object by object."""
    schema = json_file.json_schema()
    lines = [NOTE, "# The report as JSON\n"]
    lines += [
        "`report.json` in a run, and what `--json` of `build`, `bench` and `evaluate` prints.",
        "Every field is always there; what was not measured is `null`, and `unmeasured` says why.",
        "Numbers that JSON has no word for are `null` too, and named under `not_finite`. A newer",
        "version may add fields. For programs: [report.schema.json](report.schema.json). What the",
        "figures mean: [the numbers](../concepts/numbers.md).",
    ]
    parts = {"Report": schema, **schema["$defs"]}
    for name, part in parts.items():
        about = "\n".join(part.get("description", "").splitlines())
        lines += [f"\n## {name}\n", about, "\n| field | type |", "|---|---|"]
        for key, field in part["properties"].items():
            lines.append(f"| `{key}` | {kind(field)} |")
    return "\n".join(lines) + "\n"


def kind(schema: dict[str, Any]) -> str:
    """Return a type of the schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(kind(member) for member in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    words = schema.get("type", "anything")
    if words == "array":
        return f"list of {kind(schema['items'])}"
    if words == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {kind(schema['additionalProperties'])}"
    words = words if isinstance(words, str) else " or ".join(words)
    return words + (f": {schema['description']}" if "description" in schema else "")


def default(value: object) -> str:
    """Return a default as TOML would write it."""
    if value is None:
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of a settings file, for editors."""
    schema = pydantic.TypeAdapter(config.Config).json_schema(by_alias=True)
    for option in config.option_table().values():
        table = schema
        if option.table:
            table = schema["$defs"][schema["properties"][option.table]["$ref"].rpartition("/")[2]]
        table["properties"][option.key]["description"] = option.description
    return schema


def formats() -> str:
    """Return the page of number formats with its table, between its two comments."""
    head, first, rest = (REFERENCE / FORMATS_PAGE).read_text(encoding="utf-8").partition("<!--")
    note, end, tail = rest.partition("-->\n")
    _, last, tail = tail.partition("<!-- End")
    names, reasons = list(backends.BACKENDS), list[str]()
    lines = [f"| format | weights | activations | images | {' | '.join(names)} |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for name, row in FORMATS.items():
        images = "needed" if row.needs_ranges else "not needed"
        cells = [f"`{name}`", row.weights, row.activations, images]
        for backend in names:
            if why := backends.requirements(backend).why_not(name):
                reasons += [why] if why not in reasons else []
                cells.append(f"no ({reasons.index(why) + 1})")
            else:
                cells.append("yes")
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    table = "\n".join(["", *lines, "", *notes, "", ""])
    return f"{head}{first}{note}{end}{table}{last}{tail}"


def pages() -> dict[str, str]:
    """Return the text of every generated file by name."""
    return {
        FORMATS_PAGE: formats(),
        "commands.md": commands(),
        "settings.md": settings(),
        "qconvert.schema.json": json.dumps(settings_schema(), indent=2) + "\n",
        "report.md": report(),
        "report.schema.json": json.dumps(json_file.json_schema(), indent=2) + "\n",
    }


def run(check: bool) -> int:
    """Write the pages, or print the names of those that differ from the code."""
    os.environ["COLUMNS"] = "80"
    stale = []
    for name, text in pages().items():
        place = REFERENCE / name
        if place.exists() and place.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    verb = "stale" if check else "written"
    print(f"docs: {', '.join(stale)} {verb}" if stale else "docs: up to date")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(run("--check" in sys.argv))
