"""What the tests prove of every GPU backend, as the table in `docs/results.md`.

A test says what it proves and what it ran for that:

    @pytest.mark.proves("tensorrt", "engine reloaded without a build", by="real wheel")

Backend and feature may name parameters of the test in braces. `by` may be a mapping whose keys are
backends or values of parameters; where it has none of them, the test proves nothing of a GPU.

`python -m tests.gpu_lab.table REPORT...` reads the outcomes from pytest's JUnit reports and writes
the table. Outcomes that no report holds stay, such as those of a GPU in reports of a machine
without one.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/results.md"
BEGIN, END = "<!-- Written by `make gpu-lab`. -->", "<!-- End of what it writes. -->"
TESTS = ("tests/gpu_lab", "tests/backends")
# What a test can run, by how much of it is NVIDIA's own.
KINDS = ("real wheel", "real bindings", "real builder", "real device")
# Which of them a builder of `tensorrt` runs.
BUILDERS = {"native": "real bindings", "provider": "real wheel"}
BACKENDS = ("cuda", "tensorrt", "tensorrt-rtx")
PROPERTY = "proves"


@dataclass(frozen=True)
class Claim:
    """What a test proves: a feature of a backend, by running one of `KINDS`; `file` holds it."""

    backend: str
    feature: str
    by: str
    file: str
    outcome: str = "passed"

    @property
    def key(self) -> tuple[str, str, str]:
        """What is proven, whatever proves it."""
        return self.backend, self.feature, self.by


def claims(item: pytest.Item) -> Iterator[Claim]:
    """Yield what a collected test proves if it passes: nothing if it is expected to fail."""
    if item.get_closest_marker("xfail"):
        return
    params: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    for mark in item.iter_markers(PROPERTY):
        backend, feature = (text.format(**params) for text in mark.args)
        by = mark.kwargs["by"]
        if isinstance(by, Mapping):
            choices = (backend, *map(str, params.values()))
            by = next((by[choice] for choice in choices if choice in by), None)
        if by is not None:
            if by not in KINDS or backend not in BACKENDS:
                raise pytest.UsageError(f"{item.nodeid}: no proof of `{backend}` by `{by}`")
            yield Claim(backend, feature, by, item.path.relative_to(ROOT).as_posix())


def record(items: Sequence[pytest.Item]) -> None:
    """Let the report of a test session hold what each test proves."""
    for item in items:
        item.user_properties += [(PROPERTY, json.dumps(asdict(claim))) for claim in claims(item)]


def read(report: Path) -> list[Claim]:
    """Return the claims of a JUnit report with their outcomes."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failed = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if failed else "passed" if case.find("skipped") is None else "skipped"
        for item in case.iter("property"):
            if item.get("name") == PROPERTY:
                claim = Claim(**json.loads(item.get("value") or ""))
                found.append(replace(claim, outcome=outcome))
    return found


def render(found: Sequence[Claim]) -> str:
    """Return the table; a cell tells whether the tests passed, and links to a file of them."""
    cells: dict[tuple[str, str, str], str] = {}
    # A failed test outweighs one that was not run, and that one those that passed.
    for claim in sorted(found, key=lambda claim: (claim.outcome, claim.file)):
        if claim.outcome != "skipped":
            cells.setdefault(claim.key, f"[{claim.outcome}](../{claim.file})")
    lines = [f"| backend | feature | {' | '.join(KINDS)} |", f"|---|---|{'---|' * len(KINDS)}"]
    rows = {(backend, feature) for backend, feature, _ in cells}
    for backend, feature in sorted(rows, key=lambda row: (row[0], row[1].lower())):
        row = [cells.get((backend, feature, by), "") for by in KINDS]
        lines.append(f"| `{backend}` | {feature} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def parse(page: str) -> list[Claim]:
    """Return the claims of the table that a page holds."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    found = []
    for row in re.findall(r"^\| `(\S+)` \| (.*) \|$", table, re.MULTILINE):
        feature, *cells = row[1].split(" | ")
        for by, cell in zip(KINDS, cells, strict=True):
            if cell:
                outcome, file = re.fullmatch(r"\[([\w ]+)\]\(\.\./(.*)\)", cell).groups()  # type: ignore[union-attr]
                found.append(Claim(row[0], feature, by, file, outcome))
    return found


def collected() -> list[Claim]:
    """Return the claims of all tests, without running them."""
    command = (sys.executable, "-m", "pytest", "-sq", "-p", __spec__.name, "--collect-only")
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-m", PROPERTY, *TESTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [Claim(**json.loads(line)) for line in lines]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Print the claims of a collection that has this module as a plugin."""
    for item in session.items:
        for claim in claims(item):
            sys.stdout.write(json.dumps(asdict(claim)) + "\n")


def update(page: str, declared: Sequence[Claim], found: Sequence[Claim]) -> str:
    """Return a page with all claims: outcomes that were found, else those that it holds already."""
    # A report may hold tests that are no longer there.
    current = {(claim.key, claim.file) for claim in declared}
    rows = [it for it in found if it.outcome != "skipped" and (it.key, it.file) in current]
    rows += [claim for claim in parse(page) if claim.key not in {row.key for row in rows}]
    known = {row.key for row in rows}
    rows += [
        replace(claim, outcome="not run")
        for claim in declared
        if claim.key not in known and claim.by != "real device"
    ]
    files = {claim.key: claim.file for claim in reversed(declared)}
    rows = [replace(row, file=files[row.key]) for row in rows if row.key in files]
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{render(rows)}\n{END}{rest.partition(END)[2]}"


def main(reports: Sequence[str]) -> int:
    """Write the table into the page, and say how many tests of the reports passed."""
    found = [claim for report in reports for claim in read(Path(report))]
    text = update(PAGE.read_text(encoding="utf-8"), collected(), found)
    PAGE.write_text(text, encoding="utf-8")
    count = Counter(claim.outcome for claim in parse(text))
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(count.items()))
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {outcomes}\n")
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
