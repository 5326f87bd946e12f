"""The page in a real browser, with desktop and phone sizes, in light and dark."""

import html as escaping
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.report import evidence
from tests.report.test_html import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")

DESK, PHONE = 1280, 390
LONG = "/features/" + "a_very_long_name_of_a_block/" * 4 + "Conv"

# Measures the page from inside and reports to the frame around it.
LOOK = """
<script>
window.addEventListener("load", () => {
  const box = (each) => each.getBoundingClientRect();
  const cut = [], over = [];
  for (const svg of document.querySelectorAll("svg")) {
    const outer = box(svg), texts = [...svg.querySelectorAll("text")];
    for (const text of texts) {
      const inner = box(text);
      const fits = inner.left >= outer.left - 2 && inner.right <= outer.right + 2
        && inner.top >= outer.top - 2 && inner.bottom <= outer.bottom + 2;
      if (!fits) cut.push(text.textContent);
    }
    texts.forEach((a, at) => texts.slice(at + 1).forEach((b) => {
      const [x, y] = [box(a), box(b)];
      const apart = x.right <= y.left + 1 || y.right <= x.left + 1
        || x.bottom <= y.top + 3 || y.bottom <= x.top + 3;
      if (!apart) over.push(a.textContent + " / " + b.textContent);
    }));
  }
  const table = document.querySelector("#tables table");
  const cells = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  const head = table.tHead.rows[0].cells[1];
  head.click(); const up = cells(); head.click(); const down = cells();
  const style = getComputedStyle(document.body);
  parent.postMessage(JSON.stringify({
    wide: document.documentElement.scrollWidth, room: window.innerWidth, cut, over, up, down,
    ground: style.backgroundColor, ink: style.color,
    pictures: [...document.images].map((each) => each.naturalWidth),
    least: Math.min(...[...document.querySelectorAll("svg text")].map((each) => box(each).height)),
  }), "*");
});
</script>
</body>
"""
FRAME = """<!doctype html><title>waiting</title><pre id="told"></pre>
<iframe src="page.html" style="width:{width}px;height:3000px;border:0"></iframe>
<script>
const told = document.getElementById("told");
addEventListener("message", (event) => {{ told.textContent = event.data; }});
</script>"""


@cache
def layout(width: int, *, dark: bool, folder: Path) -> dict[str, Any]:
    text = page(evidence.explained(name=LONG)).replace("</body>", LOOK)
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    assert BROWSER is not None
    result = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1400,3000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom", (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    message = re.search(r'<pre id="told">(.+?)</pre>', result.stdout, re.DOTALL)
    assert message is not None, result.stderr[-500:]
    measured: dict[str, Any] = json.loads(escaping.unescape(message[1]))
    return measured


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_page_layout_has_no_cut_or_overlapping_text(width: int, dark: bool, tmp_path: Path) -> None:
    shown = layout(width, dark=dark, folder=tmp_path)
    assert shown["room"] == width
    assert shown["wide"] <= width
    assert shown["cut"] == []
    assert shown["over"] == []
    assert all(shown["pictures"])
    # The text of charts shrinks with them, and stays readable.
    assert shown["least"] >= 8
    light = sum(map(int, re.findall(r"\d+", shown["ground"])[:3]))
    assert (light < 3 * 60) == dark
    ink = sum(map(int, re.findall(r"\d+", shown["ink"])[:3]))
    assert abs(light - ink) > 3 * 120
    numbers = [float(number) for number in shown["up"]]
    assert numbers == sorted(numbers)
    assert shown["down"] == shown["up"][::-1]
