"""Commands on the pages exist, links resolve, and generated pages are up to date."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from qconvert.cli import COMMANDS
from qconvert.core.config import option_table
from tests.docs.commands import ROOT, qconvert_lines, require_real, shell_lines

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "calib_data/*.md", "docker/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_resolve(page: Path) -> None:
    for file, anchor in re.findall(
        r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")
    ):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def anchors(page: Path) -> list[str]:
    """Return the headings of a page as links to them are written."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_is_reachable_from_the_readme(page: Path) -> None:
    assert page.resolve() in reached()


def test_documentation_images_are_shown_on_pages() -> None:
    shown = {target for page in PAGES for target in targets(page)}
    images = {
        file.resolve() for kind in ("svg", "png") for file in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert images
    assert images <= shown


@cache
def reached() -> frozenset[Path]:
    """Return the pages that links lead to from the README."""
    pages, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in pages and page.suffix == ".md":
            pages.add(page)
            waiting += targets(page)
    return frozenset(pages)


def targets(page: Path) -> list[Path]:
    """Return the files that a page links to or shows."""
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in links]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_are_valid(page: Path) -> None:
    for args in qconvert_lines(shell_lines(page.read_text(encoding="utf-8"))):
        require_real(args)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_of_a_page_exist(page: Path) -> None:
    named = re.findall(r"--set ([a-z-]+\.[a-z0-9-]+)=", page.read_text(encoding="utf-8"))
    assert set(named) <= set(option_table())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_of_a_page_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(
        r"(?:^|`)make (?:-f \S+ )?([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_reference_documents_each_command() -> None:
    reference = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"## {name}\n" in reference


@pytest.mark.slow
def test_generated_reference_is_up_to_date() -> None:
    process = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout


def test_cleaning_guide_lists_the_passes_of_the_code() -> None:
    from qconvert.graph.clean import list_passes

    text = (ROOT / "docs/concepts/cleaning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \| (yes|no) \|$", text, re.MULTILINE)
    words = {True: "yes", False: "no"}
    assert rows == [
        (step.name, words[step.safe_for_quantized], words[step.safe_for_large])
        for step in list_passes(opset=20)
    ]
