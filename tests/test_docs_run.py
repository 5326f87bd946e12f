"""The commands of the README and the guides do what the pages say: they are typed, in their order.

All pages share the folder that `docs_world` lays, as with a reader who goes through them, and a
line that stands in several is typed once. Lines that cannot run on any machine are in `NOT_RUN`
with the reason; `test_docs` holds those against the real commands and options too.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import docs_world
from tests.commands_in_docs import ROOT, shell_lines
from tests.conftest import Outcome

PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "reference"),
]
NOT_RUN = {
    r"^docker |^make image": "needs a container engine and a package index; docker/check has both",
    r"^make demo": "makes an environment first; .ci/bare makes one and runs the demo in it",
    r"^make test": "is what runs this",
    r"^pip install": "needs a package index; .ci/bare installs the package",
    r"^qconvert search |--precision \S*mixed": "takes long; tests/cli/test_search.py searches",
    r"timm:": "downloads weights; tests/sources/test_torch_zoos takes random ones",
    r"--backend tensorrt-rtx(?!.*--plan-only)": "takes half a minute; tests/backends builds such",
    r"^qconvert build (?!.*--(plan-only|dry-run)).*--backend (cuda|tensorrt)(?!-)": "needs a GPU",
}
# A page may show limits that ten pictures a class cannot keep; 1 says that they were judged.
GATES = ("--max-drop", "--min-agreement", "--max-latency", "--min-speedup", "--max-size")

Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the reader's project once, with a run in it."""
    place = tmp_path_factory.mktemp("project")
    docs_world.lay(place)
    return place


@pytest.fixture(scope="session")
def typed_before() -> set[str]:
    """Return the lines that were typed; the first of them made the project's run."""
    return {docs_world.BUILD}


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the project, which is not copied: a run belongs to the images of one place."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(project / ".store"))
    docs_world.settings(project)
    return project


def runs(line: str) -> bool:
    return not any(re.search(each, line) for each in NOT_RUN)


def lines_of(page: Path) -> list[str]:
    return [re.sub(r"\s+", " ", line) for line in shell_lines(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(map(runs, lines_of(page)))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_of_a_page_work(
    page: Path, here: Path, typed_before: set[str], qconvert: Run
) -> None:
    for line in (each for each in lines_of(page) if runs(each) and each not in typed_before):
        # Written by `init` itself, which does not write over it.
        if "qconvert init" in line:
            (here / "qconvert.toml").unlink()
        done = typed(line, here, qconvert)
        typed_before.add(line)
        allowed = (0, 1) if any(gate in line for gate in GATES) else (0,)
        assert done.code in allowed, f"{line}\n{done.out}\n{done.err}"


def typed(line: str, place: Path, qconvert: Run) -> Outcome:
    """Type a line: a bare command in this process, which is quick, and all else in a shell."""
    if re.fullmatch(r"qconvert [^|&;<>$`]*", line):
        return qconvert(*shlex.split(line, comments=True)[1:])
    done = docs_world.shell(line, place)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.usefixtures("here")
def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "cpu-int8" in done.stdout


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_in_some_page(pattern: str) -> None:
    assert any(re.search(pattern, line) for page in PAGES for line in lines_of(page))
