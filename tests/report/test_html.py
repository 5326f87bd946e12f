"""One page that needs nothing else, is the same for the same report, and believes no name."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qconvert.core.config import GateConfig
from qconvert.report import json_file
from qconvert.report.html import _prose, render_html
from qconvert.report.model import SCHEMA, Report
from qconvert.report.verdict import conclude
from tests.report import evidence
from tests.report.test_tables import SHAPES

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = """<script>alert("1")</script>'&{{ 7*7 }}<img src=x onerror=alert(1)>"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, which must close what they open."""

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
    return render_html(conclude(report, GateConfig(max_drop=0.2)), evidence.pictures())


def without_drawings(text: str) -> str:
    """Return a page as every version of Matplotlib makes it."""
    return re.sub(r"<svg.*?</svg>", "<svg/>", text, flags=re.DOTALL)


def test_the_page_is_what_it_was() -> None:
    made = without_drawings(page(evidence.explained()))
    place = GOLDEN / "report.html"
    assert made == place.read_text(encoding="utf-8")


def test_the_same_report_gives_the_same_bytes_in_another_process() -> None:
    script = (
        "import sys; from tests.report import evidence, test_html;"
        "sys.stdout.buffer.write(test_html.page(evidence.explained()).encode())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "7", "PATH": "", "HOME": str(Path.cwd())},
    )
    assert found.stdout.decode() == page(evidence.explained())


@pytest.mark.parametrize("shape", SHAPES.values())
def test_every_shape_of_report_makes_a_well_formed_page(shape: Callable[[], Report]) -> None:
    made = Page(page(shape()))
    assert "How it was made" in made.text
    assert "Where errors come from" not in made.text


def test_sections_stand_in_the_order_in_which_a_reader_decides() -> None:
    found = re.findall(r'<section id="([a-z-]+)">', page(evidence.explained()))
    assert found == [
        "gates", "tables", "bars", "notes", "trade-off", "where", "why", "predictions", "made",
    ]  # fmt: skip


def test_the_page_asks_for_nothing_from_anywhere() -> None:
    made = Page(page(evidence.explained()))
    for tag, attributes in made.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:image/", "#")), (tag, name, value)
    styles = page(evidence.explained())
    assert "@import" not in styles
    assert re.findall(r"url\((?!#|data:)", styles) == []
    policy = [a["content"] for t, a in made.elements if "http-equiv" in a and t == "meta"]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ]


def test_names_from_outside_are_text_and_nothing_else() -> None:
    kind = Page(page(evidence.explained()))
    report = evidence.explained(name=HOSTILE, image=HOSTILE)
    text = json_file.dumps(report).replace('"cat"', json.dumps(HOSTILE))
    text = text.replace('"lite0.onnx"', json.dumps(HOSTILE))
    report = json_file.loads(text, "x")
    attacked = Page(page(report))
    count = {tag: 0 for tag, _ in attacked.elements}
    for tag, attributes in attacked.elements:
        count[tag] += 1
        assert not any(name.startswith("on") for name in attributes)
    assert count["script"] == 1
    assert count["img"] == sum(tag == "img" for tag, _ in kind.elements)
    assert HOSTILE in attacked.text


def test_code_stands_between_backticks_and_is_escaped_too() -> None:
    assert _prose("see `a<b>` & <i>") == "see <code>a&lt;b&gt;</code> &amp; &lt;i&gt;"
    assert _prose("one ` alone <b>") == "one ` alone &lt;b&gt;"


def test_pictures_that_are_not_there_are_left_out() -> None:
    made = Page(render_html(evidence.explained(), {}))
    assert not any(tag == "img" for tag, _ in made.elements)
    assert "Feature maps" not in made.text
    assert "cat → dog" in made.text


def test_reports_of_the_first_schema_are_still_shown() -> None:
    report = json_file.load(GOLDEN / "schema-1.json")
    assert report.schema == SCHEMA
    made = Page(render_html(report, {}))
    assert "fails max-drop" in made.text or "Ship" in made.text
    assert [each.name for each in report.variants][-1] == "tensorrt-rtx-int8"
    assert "tensorrt-rtx-int8" in made.text


def test_matplotlib_is_imported_only_to_draw() -> None:
    script = (
        "import sys; import qconvert.report.html, qconvert.run.targets;"
        "print('matplotlib' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


def test_a_bar_of_blocks_is_drawn_as_a_bar() -> None:
    widths = re.findall(r'class="meter" style="width:(\d+)%"', page(evidence.explained()))
    assert widths[:3] == ["100", "89", "80"]
    assert "█" not in page(evidence.explained())
