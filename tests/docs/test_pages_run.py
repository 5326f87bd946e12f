"""The commands of the README and the guides run, in their order, and end as the pages say.

All pages share one project folder, as for a reader who works through them. A line that stands on
several pages runs once. Lines that cannot run on every machine are in `NOT_RUN` with the reason;
`test_pages` checks their commands and options too.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome
from tests.docs import reader_project
from tests.docs.commands import ROOT, shell_lines

pytestmark = pytest.mark.long
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "reference"),
]
NOT_RUN = {
    r"^docker |^make image": "needs a container engine and a package index; docker/check has both",
    r"^make (demo|setup|check|dist)": "creates an environment; .ci/run and .ci/dist do that",
    r"^make (test|quick)": "runs this test",
    r"^pip install": "needs a package index; .ci/dist installs the package",
    r"^qconvert search |--precision \S*mixed": "takes long; tests/cli/test_search.py searches",
    r"^qconvert demo": "takes minutes; tests/cli/test_demo.py runs it on fewer images",
    r"timm:": "downloads weights; tests/sources takes random ones",
    r"--backend tensorrt-rtx(?!.*--plan-only)": "takes half a minute; tests/backends builds such",
    r"^qconvert build (?!.*--(plan-only|dry-run)).*--backend (cuda|tensorrt)(?!-)": "needs a GPU",
    r"doctor --prove|bench runs/gpu$": "needs a GPU; tests/gpu_lab/test_guide.py simulates one",
    r"^make any-cpu|tests\.any_cpu": "emulates CPUs for minutes; tests/any_cpu runs the same",
    r"^python3 -m venv|^\. .venv": "creates an environment",
}
# Ten steps of training go the whole way that a hundred go.
FEWER_STEPS = ("--training-steps 100", "--training-steps 10")
# A page may show gates that ten images per class cannot pass; exit code 1 means they were checked.
GATES = ("--max-drop", "--min-agreement", "--max-latency", "--min-speedup", "--max-size")

Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the reader's project with a run in it, once."""
    folder = tmp_path_factory.mktemp("project")
    reader_project.create(folder)
    return folder


@pytest.fixture(scope="session")
def finished_lines() -> set[str]:
    """Return the lines that have run; creating the project runs the first."""
    return {reader_project.BUILD}


@pytest.fixture
def project(project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the project itself: its run refers to images by their path."""
    monkeypatch.chdir(project_folder)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(project_folder / ".cache"))
    reader_project.write_settings(project_folder)
    return project_folder


def can_run(line: str) -> bool:
    return not any(re.search(pattern, line) for pattern in NOT_RUN)


def page_lines(page: Path) -> list[str]:
    return [re.sub(r"\s+", " ", line) for line in shell_lines(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(map(can_run, page_lines(page)))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands_of_a_page_run(
    page: Path, project: Path, finished_lines: set[str], qconvert: Command
) -> None:
    for line in page_lines(page):
        if not can_run(line) or line in finished_lines:
            continue
        if "qconvert init" in line:  # does not overwrite a settings file
            (project / "qconvert.toml").unlink()
        outcome = run_line(line.replace(*FEWER_STEPS), project, qconvert)
        finished_lines.add(line)
        allowed = (0, 1) if any(gate in line for gate in GATES) else (0,)
        assert outcome.code in allowed, f"{line}\n{outcome.out}\n{outcome.err}"


def run_line(line: str, folder: Path, qconvert: Command) -> Outcome:
    """Run a single command in this process, for speed, and everything else in a shell."""
    if re.fullmatch(r"qconvert [^|&;<>$`]*", line):
        return qconvert(*shlex.split(line, comments=True)[1:])
    process = reader_project.run_shell(line, folder)
    return Outcome(process.returncode, process.stdout, process.stderr)


@pytest.mark.usefixtures("project")
def test_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (process.returncode, process.stderr) == (0, "")
    # Which engine ships depends on the CPU.
    assert re.search("`cpu-(fp32|fp16|int8)`", process.stdout)


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_patterns_of_skipped_commands_match_a_page(pattern: str) -> None:
    assert any(re.search(pattern, line) for page in PAGES for line in page_lines(page))
