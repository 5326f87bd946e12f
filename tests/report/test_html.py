"""The page is self-contained, deterministic, and escapes every untrusted name."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qconvert.core.config import GateConfig
from qconvert.report import json_file
from qconvert.report.html import prose, render_html
from qconvert.report.model import SCHEMA, Report
from qconvert.report.verdict import conclude
from tests.report import evidence
from tests.report.test_tables import SHAPES

GOLDEN = Path(__file__).parent / "golden"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, each of which must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(report: Report) -> str:
    return render_html(conclude(report, GateConfig(max_drop=0.2)), evidence.images())


@cache
def explained_page() -> str:
    return page(evidence.explained())


def without_drawings(text: str) -> str:
    """Return a page as every version of Matplotlib makes it."""
    return re.sub(r"<svg.*?</svg>", "<svg/>", text, flags=re.DOTALL)


def test_page_matches_the_golden_file() -> None:
    text = without_drawings(explained_page())
    golden = GOLDEN / "report.html"
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.slow
def test_page_has_the_same_bytes_in_another_process() -> None:
    script = (
        "import sys; from tests.report import test_html;"
        "sys.stdout.buffer.write(test_html.explained_page().encode())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "7", "PATH": "", "HOME": str(Path.cwd())},
    )
    assert result.stdout.decode() == explained_page()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values())
def test_page_is_well_formed_for_every_report_shape(shape: Callable[[], Report]) -> None:
    document = Page(page(shape()))
    assert "How it was made" in document.text
    assert "Where errors come from" not in document.text


def test_page_requests_no_other_resource() -> None:
    document = Page(explained_page())
    for tag, attributes in document.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:image/", "#")), (tag, name, value)
    styles = explained_page()
    assert "@import" not in styles
    assert re.findall(r"url\((?!#|data:)", styles) == []
    policy = [a["content"] for t, a in document.elements if "http-equiv" in a and t == "meta"]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ]


def test_backticks_become_code_and_are_escaped() -> None:
    assert prose("see `a<b>` & <i>") == "see <code>a&lt;b&gt;</code> &amp; &lt;i&gt;"
    assert prose("one ` alone <b>") == "one ` alone &lt;b&gt;"


def test_missing_image_files_are_left_out_of_the_page() -> None:
    document = Page(render_html(evidence.explained(), {}))
    assert not any(tag == "img" for tag, _ in document.elements)
    assert "Feature maps" not in document.text
    assert "cat → dog" in document.text


def test_report_of_schema_1_is_still_rendered() -> None:
    report = json_file.load(GOLDEN / "schema-1.json")
    assert report.schema == SCHEMA
    document = Page(render_html(report, {}))
    assert "fails max-drop" in document.text or "Ship" in document.text
    assert [variant.name for variant in report.variants][-1] == "tensorrt-rtx-int8"
    assert "tensorrt-rtx-int8" in document.text


@pytest.mark.slow
def test_importing_html_does_not_import_matplotlib() -> None:
    script = (
        "import sys; import qconvert.report.html, qconvert.run.targets;"
        "print('matplotlib' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
