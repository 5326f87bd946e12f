"""Make the example of a report anew: `python docs/example.py` on a machine that does nothing else.

`docs/example/report.html` is the report of `qconvert demo`, and `errors.png` a part of it, which
needs a headless browser: `chromium`, or the one that BROWSER names. `python docs/example.py FOLDER`
takes the demo that has run in that folder.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

EXAMPLE = Path(__file__).parent / "example"
SIZE = "1100,870"
# The chart of the layers, and one feature map of each kind.
CHART = re.compile(r"<figure[^>]*>\s*<figcaption>SQNR from layer to layer.*?</figure>", re.DOTALL)
MAP = re.compile(r'<figure class="map">.*?</figure>', re.DOTALL)
KINDS = ("among the largest errors made", "the end of a stage")


def run_demo(folder: Path) -> None:
    """Run the demo with an empty cache, so that everything is measured now."""
    environment = {**os.environ, "QCONVERT_CACHE_DIR": str(folder / "cache")}
    command = (sys.executable, "-m", "qconvert", "demo")
    subprocess.run(command, cwd=folder, env=environment, check=True)


def cut(html: str) -> str:
    """Return a page of the chart and two maps of a report."""
    style = re.search(r"<style>.*?</style>", html, re.DOTALL)
    chart, maps = CHART.search(html), MAP.findall(html)
    if style is None or chart is None:
        raise SystemExit("this report has no errors from layer to layer")
    chosen = [next(text for text in maps if kind in text) for kind in KINDS]
    head = f"<!doctype html><meta charset=utf-8>{style[0]}"
    return f'{head}<main>{chart[0]}<div class="maps">{"".join(chosen)}</div></main>'


def take_picture(html: str, target: Path) -> None:
    """Let a headless browser draw a page."""
    browser = os.environ.get("BROWSER", "chromium")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html, encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={SIZE}", f"--screenshot={target.resolve()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    with Image.open(target) as picture:  # 256 colours are a third of the bytes
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def write(place: Path) -> None:
    """Write both files from the demo that has run in a folder."""
    report = place / "qconvert-demo/run/report.html"
    shutil.copyfile(report, EXAMPLE / report.name)
    take_picture(cut(report.read_text(encoding="utf-8")), EXAMPLE / "errors.png")
    print(f"docs/example: {', '.join(sorted(path.name for path in EXAMPLE.iterdir()))}")


if __name__ == "__main__":
    if sys.argv[1:]:
        write(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            run_demo(Path(name))
            write(Path(name))
