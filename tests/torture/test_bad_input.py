"""Five thousand damaged inputs: each is processed, or rejected with an error message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
CASES, SLICE = 5000, 250
# The folder that keeps the files of failed cases.
KEPT = os.environ.get("QCONVERT_FUZZ_KEEP", "")


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of valid files, which the first slice creates."""
    return tmp_path_factory.mktemp("fuzz") / "seeds"


@pytest.mark.parametrize("first", range(0, CASES, SLICE))
def test_damaged_input_is_rejected_or_processed(first: int, seeds: Path) -> None:
    numbers = [str(first), str(first + SLICE)]
    keep = ["--keep", KEPT] if KEPT else []
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *numbers, "--seeds", str(seeds), *keep],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(process.stdout)  # the figures of a slice, shown with `-s`
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
