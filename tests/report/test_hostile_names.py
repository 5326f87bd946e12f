"""A report in which every name is hostile: a page, Markdown and a table file that only show it."""

import csv
import io
import json
from typing import Any

import pydantic
import pytest
from markdown_it import MarkdownIt

from qconvert.core.config import GateConfig
from qconvert.report import json_file
from qconvert.report.html import render_html
from qconvert.report.layer_tables import layers_csv
from qconvert.report.markdown import render_markdown
from qconvert.report.model import Report
from qconvert.report.model_card import render_card
from qconvert.report.verdict import conclude
from tests.report import evidence
from tests.report.test_html import Page

PAYLOADS = {
    "elements": "<img src=x onerror=alert(1)><script>alert(1)</script>'\"&{{7*7}}",
    "links": "[a](javascript:alert(1)) ![b](http://x/y.png) <http://x> [ref]: http://x",
    "code": "`<img src=x>` \\|<b>x</b> ``` `` ` | \\` <i>",
    "lines": "\n# big\n\n<hr>\n\n| a |\n|---|\n***\n```\n",
    "terminal": "\x1b[2J\x1b]0;t\x07\x9b31m\u202e\u2066\r\x00\x08",
}


def clean() -> Report:
    return conclude(evidence.explained(), GateConfig(max_drop=0.2))


def hostile(payload: str) -> Report:
    """Return the report with a payload behind every text that may be any text."""
    told = json_file.to_json(clean())
    kept: set[tuple[Any, ...]] = set()
    while True:
        spoiled = _spoiled(told, payload, (), kept)
        try:
            return json_file.loads(json.dumps(spoiled), "report.json")
        except Exception:
            found = _refused(spoiled)
            assert found - kept, "the payload breaks more than names"
            kept |= found


def _refused(spoiled: Any) -> set[tuple[Any, ...]]:
    try:
        json_file.ADAPTER.validate_python(json_file.field_values(json.loads(json.dumps(spoiled))))
    except pydantic.ValidationError as error:
        return {tuple(each["loc"]) for each in error.errors()}
    return set()


def _spoiled(value: Any, payload: str, at: tuple[Any, ...], kept: set[tuple[Any, ...]]) -> Any:
    if isinstance(value, dict):
        return {key: _spoiled(each, payload, (*at, key), kept) for key, each in value.items()}
    if isinstance(value, list):
        return [_spoiled(each, payload, (*at, place), kept) for place, each in enumerate(value)]
    structural = at in kept or at[:1] == (json_file.NOT_FINITE_KEY,) or at[:1] == ("preprocess",)
    return value + payload if isinstance(value, str) and not structural else value


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_page_shows_hostile_names_and_does_nothing_with_them(payload: str) -> None:
    plain, made = (
        render_html(clean(), evidence.pictures()),
        render_html(hostile(payload), evidence.pictures()),
    )
    before, after = Page(plain).elements, Page(made).elements
    assert {tag for tag, _ in after} <= {tag for tag, _ in before}
    assert sum(tag == "script" for tag, _ in after) == sum(tag == "script" for tag, _ in before)
    names = {name for _, attributes in after for name in attributes}
    assert names <= {name for _, attributes in before for name in attributes}
    assert _acting(made) == []


@pytest.mark.parametrize("write", [render_markdown, render_card])
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_markdown_shows_hostile_names_and_does_nothing_with_them(write: Any, payload: str) -> None:
    plain, made = write(clean()), write(hostile(payload))
    assert _acting(made) == []
    before, after = (_kinds(_body(text)) for text in (plain, made))
    assert after <= before | {"code_inline", "hardbreak", "em_open"}


def _body(text: str) -> str:
    """Return a Markdown file without the front matter of a model card."""
    return text.removeprefix("---").partition("\n---\n")[2] if text.startswith("---") else text


def _kinds(text: str) -> set[str]:
    """Return what Markdown makes of a text, as GitHub reads it."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return {each.type for token in tokens for each in (token, *(token.children or ()))}


def test_json_shows_no_character_that_acts() -> None:
    report = hostile(PAYLOADS["terminal"])
    told = json_file.dumps(report)
    assert _acting(told) == []
    assert json_file.loads(told, "report.json") == report


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-cmd|' /C calc'!A0", "@SUM(A1)", " =1", "\t=1", "\r=1"]
)
def test_a_table_file_holds_no_formulas(name: str) -> None:
    layers = next(each for each in clean().variants if each.layers).layers
    spoiled = [pydantic.TypeAdapter(type(each)).validate_python(
        {**pydantic.TypeAdapter(type(each)).dump_python(each), "tensor": name, "node": name}
    ) for each in layers]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(layers_csv({name: spoiled}))))
    assert len(rows) == len(layers)
    for row in rows:
        for key in ("variant", "tensor", "node"):
            assert not row[key].lstrip().startswith(("=", "+", "-", "@"))
            assert row[key].isprintable()


def _acting(text: str) -> list[str]:
    """Return the characters of a text that a terminal or a browser would obey."""
    return sorted({c for c in text if not c.isprintable() and c not in "\n\u00a0"})
