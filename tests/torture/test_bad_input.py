"""Five thousand spoiled inputs: an exit code and a sentence for each, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
CASES, SLICE = 5000, 250
# Where the folders of cases that fail are left.
KEPT = os.environ.get("QCONVERT_FUZZ_KEEP", "")


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the good files lie, which the first slice makes."""
    return tmp_path_factory.mktemp("fuzz") / "seeds"


@pytest.mark.parametrize("first", range(0, CASES, SLICE))
def test_damaged_input_is_rejected_or_processed(first: int, seeds: Path) -> None:
    numbers = [str(first), str(first + SLICE)]
    keep = ["--keep", KEPT] if KEPT else []
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *numbers, "--seeds", str(seeds), *keep],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)  # the figures of a slice, shown with `-s`
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
