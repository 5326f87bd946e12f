"""Hostile names of files, nodes and classes are inert in HTML, Markdown, JSON and CSV."""

import csv
import io
import json
from functools import cache
from typing import Any

import pydantic
import pytest
from markdown_it import MarkdownIt

from qconvert.core.config import GateConfig
from qconvert.report import json_file
from qconvert.report.html import render_html
from qconvert.report.markdown import render_card, render_markdown
from qconvert.report.model import Report
from qconvert.report.tables import layers_csv
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


@cache
def clean() -> Report:
    return conclude(evidence.explained(), GateConfig(max_drop=0.2))


@cache
def clean_page() -> str:
    return render_html(clean(), evidence.images())


def hostile(payload: str) -> Report:
    """Return the report with a payload appended to every free text."""
    data = json_file.to_json(clean())
    skip: set[tuple[Any, ...]] = set()
    while True:
        spoiled = _spoiled(data, payload, (), skip)
        try:
            return json_file.loads(json.dumps(spoiled), "report.json")
        except Exception:
            refused = _refused(spoiled)
            assert refused - skip, "the payload breaks more than names"
            skip |= refused


def _refused(spoiled: Any) -> set[tuple[Any, ...]]:
    try:
        json_file.ADAPTER.validate_python(spoiled)
    except pydantic.ValidationError as error:
        return {tuple(problem["loc"]) for problem in error.errors()}
    return set()


def _spoiled(value: Any, payload: str, at: tuple[Any, ...], skip: set[tuple[Any, ...]]) -> Any:
    if isinstance(value, dict):
        return {key: _spoiled(item, payload, (*at, key), skip) for key, item in value.items()}
    if isinstance(value, list):
        return [_spoiled(item, payload, (*at, index), skip) for index, item in enumerate(value)]
    fixed = at in skip or at[:1] == ("not_finite",) or at[:1] == ("preprocess",)
    return value + payload if isinstance(value, str) and not fixed else value


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_hostile_names_are_inert_in_html(payload: str) -> None:
    clean_text, hostile_text = (clean_page(), render_html(hostile(payload), evidence.images()))
    before, after = Page(clean_text).elements, Page(hostile_text).elements
    assert {tag for tag, _ in after} <= {tag for tag, _ in before}
    assert sum(tag == "script" for tag, _ in after) == sum(tag == "script" for tag, _ in before)
    names = {name for _, attributes in after for name in attributes}
    assert names <= {name for _, attributes in before for name in attributes}
    assert _acting(hostile_text) == []


@pytest.mark.parametrize("write", [render_markdown, render_card])
@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_hostile_names_are_inert_in_markdown(write: Any, payload: str) -> None:
    clean_text, hostile_text = write(clean()), write(hostile(payload))
    assert _acting(hostile_text) == []
    before, after = (_kinds(_body(text)) for text in (clean_text, hostile_text))
    assert after <= before | {"code_inline", "hardbreak", "em_open"}


def _body(text: str) -> str:
    """Return a Markdown file without the front matter of a model card."""
    return text.removeprefix("---").partition("\n---\n")[2] if text.startswith("---") else text


def _kinds(text: str) -> set[str]:
    """Return a Markdown text as GitHub renders it."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return {part.type for token in tokens for part in (token, *(token.children or ()))}


def test_control_characters_are_escaped_in_json() -> None:
    report = hostile(PAYLOADS["terminal"])
    text = json_file.dumps(report)
    assert _acting(text) == []
    assert json_file.loads(text, "report.json") == report


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-cmd|' /C calc'!A0", "@SUM(A1)", " =1", "\t=1", "\r=1"]
)
def test_layer_names_are_not_formulas_in_csv(name: str) -> None:
    layers = next(layer for layer in clean().variants if layer.layers).layers
    spoiled = [pydantic.TypeAdapter(type(layer)).validate_python(
        {**pydantic.TypeAdapter(type(layer)).dump_python(layer), "tensor": name, "node": name}
    ) for layer in layers]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(layers_csv({name: spoiled}))))
    assert len(rows) == len(layers)
    for row in rows:
        for key in ("variant", "tensor", "node"):
            assert not row[key].lstrip().startswith(("=", "+", "-", "@"))
            assert row[key].isprintable()


def _acting(text: str) -> list[str]:
    """Return the characters of a text that a terminal or a browser would interpret."""
    return sorted({c for c in text if not c.isprintable() and c not in "\n\u00a0"})
