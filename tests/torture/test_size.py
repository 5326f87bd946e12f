"""Many images, nodes, bytes or pixels: memory stays bounded, and work grows in proportion.

The measurements are printed: `pytest -m torture -rP tests/torture/test_size.py`.
"""

import cProfile
import os
import pstats
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from qconvert.cli import main
from qconvert.cli.error_boundary import run_guarded
from tests.torture import large_models
from tests.torture.environment import Environment

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

MB = 1 << 20
QUANTIZE = ("quantize", "--effort", "none", "--method", "mse")
# An image takes its name, its hash, its label and the output of each engine.
BYTES_AN_IMAGE = 4000
SIZES = (12_500, 25_000, 50_000)

# The peak memory of a process starts at that of its parent, so this parent is small.
LAUNCH = """
import os, sys
child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "qconvert", *sys.argv[1:]])
_, status, used = os.wait4(child, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Cost:
    """The time and peak memory of a command."""

    seconds: float
    cpu: float
    peak: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, CPU {self.cpu:.1f} s, {self.peak / MB:.0f} MB"


def measure_cost(what: str, folder: Path, *words: str | Path) -> Cost:
    """Run a command in a folder with an empty cache; print and return its cost."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", LAUNCH, *map(str, words), "-q"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "QCONVERT_CACHE_DIR": str(cache), "TMPDIR": str(temporary)},
        check=True,
    )
    duration = time.monotonic() - started
    cpu, peak = map(float, process.stdout.split()[-2:])
    cost = Cost(duration, cpu, int(peak) * 1024)
    sys.stdout.write(f"{what}: {cost}\n")
    return cost


def test_build_over_50000_images_uses_bounded_memory(
    environment: Environment, tmp_path: Path
) -> None:
    peaks = {}
    for count in SIZES:
        images = large_models.link_images(environment.root / "images", count, tmp_path / f"{count}")
        words = ("build", environment.root / "net.onnx", "--images", images, "--eval", images)
        quick = ("--effort", "quick", "--seconds", "0.05", "--batch-sizes", "1")
        options = ("--count", str(count), "--backend", "cpu", "--precision", "fp32,fp16,int8")
        cost = measure_cost(
            f"{count} images", tmp_path, *words, *options, *quick, "-o", f"run-{count}"
        )
        peaks[count] = cost.peak
        shutil.rmtree(images)
    assert peaks[SIZES[-1]] - peaks[SIZES[0]] < BYTES_AN_IMAGE * (SIZES[-1] - SIZES[0])


def count_calls(model: Path, images: Path, out: Path) -> int:
    """Return how many functions a quantization calls: a measure of work without a clock."""
    profile = cProfile.Profile()
    words = (*QUANTIZE, str(model), "--images", str(images), "--count", "16", "-q", "-o", str(out))
    code = profile.runcall(run_guarded, main, list(words))
    assert code == 0
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", large_models.SHAPES)
def test_twice_the_nodes_take_twice_the_work_and_bytes(
    shape: str, environment: Environment, tmp_path: Path
) -> None:
    work, sizes = [], []
    images = environment.root / "images"
    count_calls(
        large_models.chain_model(20, tmp_path / "first.onnx"), images, tmp_path / "first-int8.onnx"
    )
    for nodes in (250, 500, 1000):
        model = large_models.SHAPES[shape](nodes, tmp_path / f"{nodes}.onnx")
        out = tmp_path / f"{nodes}-int8.onnx"
        measure_cost(
            f"{shape}, {nodes} nodes", tmp_path, *QUANTIZE, model, "--images", images, "-o", out
        )
        work.append(count_calls(model, images, tmp_path / f"{nodes}-again.onnx"))
        sizes.append(out.stat().st_size)
    sys.stdout.write(f"{shape}: {work} calls, {sizes} bytes\n")
    # Twice the nodes take twice the work, and onnxslim compares pairs of weights.
    assert work[1] < 2.4 * work[0]
    assert work[2] < 2.4 * work[1]
    assert sizes[1] < 2.1 * sizes[0]
    assert sizes[2] < 2.1 * sizes[1]


def test_images_of_64_megapixels_use_bounded_memory(
    environment: Environment, tmp_path: Path
) -> None:
    words = ("calibrate", environment.root / "net.onnx", "-o", "c.npz", "--images")
    peaks = {}
    for side in (2000, 4000, 8000):
        images = large_models.draw_large_images(side, tmp_path / f"{side}")
        peaks[side] = measure_cost(f"16 of {side} x {side}", tmp_path, *words, images).peak
    many = large_models.link_images(tmp_path / "4000", 64, tmp_path / "many")
    more = measure_cost("64 of 4000 x 4000", tmp_path, *words, many).peak
    # Pillow returns its blocks to the heap, which retains some of them.
    assert more < peaks[8000]
    # Pillow takes four bytes a pixel, and at most one image of the largest size is in memory.
    assert peaks[8000] < peaks[2000] + 4 * 200_000_000


def test_model_above_2_gb_is_quantized_in_bounded_memory(
    environment: Environment, tmp_path: Path
) -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 14 << 30 or shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("this takes 14 GB of memory and 12 GB of disk")
    images, peaks = environment.root / "images", {}
    for layers in (2, 3, 5):
        model = large_models.heavy_model(12_288, layers, tmp_path / "heavy.onnx")
        size = model.with_suffix(".data").stat().st_size
        few = ("--images", images, "--count", "8")
        what = f"{size / 1e6:.0f} MB of weights"
        peaks[size] = measure_cost(what, tmp_path, *QUANTIZE, model, *few, "-o", "int8.onnx").peak
        assert (tmp_path / "int8.onnx").stat().st_size < 0.26 * size
        assert list((tmp_path / "tmp").glob("*qconvert*")) == []
    size = max(peaks)
    assert peaks[size] < 4 * size
    # The smallest model is almost one matrix, which is copied several times when quantized.
    assert all(peak < 7 * size for size, peak in peaks.items()), peaks
