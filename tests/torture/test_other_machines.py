"""Cores, threads, workers, locale, time zone, umask, path and hash seed do not change results."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qconvert.demo import demo_files, generator
from tests.torture.commands import EVAL, SEARCH
from tests.torture.environment import Environment, make, wait_for
from tests.torture.run_content import hashes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]

CORES = Path(__file__).with_name("cores.py")
BUILD = (
    "build", "net.onnx", "--images", "images", *EVAL, "--backend", "cpu,tensorrt-rtx",
    "--precision", "fp32,fp16,int8", "--seconds", "0.02", "-o", "made",
)  # fmt: skip
SPLIT = ("calibrate", "net.onnx", "--images", "images", "-o", "made.npz")
MIX = ("search", "net.onnx", "--images", "images", *EVAL, *SEARCH, "-o", "made")
LEARNED = ("quantize", "demo.onnx", "--images", "demo", "-o", "made.onnx")
FILES = (
    "*.onnx", "plan.json", "made.json", "*.npz", "images.txt", "layers.csv", "*.png",
    "trials.jsonl", "search.json",
)  # fmt: skip
# Fields of a report that depend neither on the clock nor on the name of a folder.
STABLE_FIELDS = ("baseline", "baseline_bytes", "preprocess", "shared_images", "evidence", "mixes")
VARIANT_FIELDS = (
    "name", "accuracy", "quantized", "candidates", "unquantized", "by_precision", "layers",
    "operators",
)  # fmt: skip
UMASK = 'umask "$1"; shift; exec "$@"'


@dataclass(frozen=True)
class Machine:
    """The differences of another machine from this one."""

    cores: int
    umask: str
    folder: str
    more: Sequence[str] = ()
    batches: str = "1"
    environment: dict[str, str] = field(default_factory=dict)


ONE = Machine(
    cores=1,
    umask="077",
    folder="a",
    environment={
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "1",
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Auckland",
    },
)  # fmt: skip
OTHER = Machine(
    cores=5,
    umask="022",
    folder="Büro & Söhne/a folder with spaces",
    more=("--workers", "3"),
    batches="1,8",
    environment={
        "OMP_NUM_THREADS": "5", "OPENBLAS_NUM_THREADS": "5", "PYTHONHASHSEED": "4711",
        "LC_ALL": "tr_TR.UTF-8", "TZ": "America/St_Johns",
    },
)  # fmt: skip


def create(root: Path) -> Environment:
    """Write the small environment, and the demo network with some of its images."""
    root.mkdir(parents=True)
    environment = make(root)
    shutil.copyfile(demo_files.NETWORK, root / "demo.onnx")
    (root / "demo").mkdir()
    generator.write_images(root / "demo", 1, 40, lambda count: None)
    return environment


def run_on(machine: Machine, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command as on a machine, and return everything that must be the same on all."""
    environment = create(folder / machine.folder)
    around = ["sh", "-c", UMASK, "sh", machine.umask]
    more = machine.more if words[0] != "quantize" else ()
    batches = ("--batch-sizes", machine.batches) if words[0] == "build" else ()
    command = ["-P", str(CORES), str(machine.cores), *words, *more, *batches]
    outcome = wait_for(environment.start(command, folder / "cache", around, **machine.environment))
    assert outcome.code == 0, outcome.err
    digests = {
        name: digest
        for pattern in FILES
        for name, digest in hashes(environment.root, pattern).items()
    }
    report = environment.root / "made" / "report.json"
    return digests | (stable_content(report) if report.exists() else {})


def stable_content(report: Path) -> dict[str, Any]:
    """Return the content of a report without times and folders."""
    content = json.loads(report.read_text(encoding="utf-8"))
    of_all = {key: content[key] for key in STABLE_FIELDS}
    of_images = {
        key: (content[key]["count"], content[key]["sha256"])
        for key in ("calibration", "evaluation")
    }
    rows = {
        variant["name"]: {key: variant[key] for key in VARIANT_FIELDS}
        for variant in content["variants"]
    }
    return {**of_all, **of_images, **rows}


@pytest.mark.parametrize(
    "words", [BUILD, SPLIT, MIX, LEARNED], ids=["build", "calibrate", "search", "learned"]
)
def test_different_machines_give_the_same_result(words: Sequence[str], tmp_path: Path) -> None:
    first = run_on(ONE, words, tmp_path / "one")
    second = run_on(OTHER, words, tmp_path / "other")
    assert len(first) > 2
    assert {name for name in first if first[name] != second.get(name)} == set()
    assert set(first) == set(second)
