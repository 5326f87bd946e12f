"""The cost of calibration, compared with its lower bound and with ONNX Runtime's calibration.

Each part runs in its own process, the parts take turns, and the clock starts after the imports.
The lower bound, `floor`, decodes every image and runs one FP32 forward pass. ONNX Runtime reads the
images through our decoder, so that only the calibrations differ.

    python -m benchmarks.calibration              # EfficientNet-Lite0, all parts
    python -m benchmarks.calibration --part ours  # one part, as JSON
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
from onnxruntime import quantization

from qconvert.calibrate.calibration import load_calibration
from qconvert.calibrate.methods import find_method
from qconvert.core import config_file, onnx_io
from qconvert.core.cache import Cache
from qconvert.core.scales import Grid
from qconvert.images import ImageChoice, open_images
from qconvert.images.listing import Images
from qconvert.images.preprocess import Preprocess
from qconvert.run.calibrate import calibrate
from qconvert.run.context import JobContext

IMAGES = Path(__file__).resolve().parents[2] / "shared/data/imagenet-500/calib"
COUNT, MANY, ROUNDS = 200, 5000, 3
# ONNX Runtime's entropy method holds all activations: 66 MB per image with EfficientNet-Lite0.
ENTROPY_COUNT = 100
LITE0 = Preprocess(256, interpolation="bicubic", mean=(127 / 255,), std=(128 / 255,))
EXPORT = """
import sys
from pathlib import Path
from benchmarks import nets
nets.export(nets.lite0(), Path(sys.argv[1]), optimize=True)
"""
METHODS = ("minmax", "moving-average", "percentile:99.99", "entropy", "mse")


def main() -> None:
    if not IMAGES.is_dir():
        print(f"Calibration: not measured, the images are not here ({IMAGES.name} of imagenet-500)")
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "lite0.onnx"
        # Export in a separate process: the peak memory of a child starts at that of its parent.
        subprocess.run([sys.executable, "-c", EXPORT, str(model)], check=True)
        compare(model)


def compare(model: Path) -> None:
    run_part("ours", model, 16)  # prepares the model, and reads the files once
    turns = [("floor", COUNT), ("ours", COUNT), ("minmax", COUNT)] * ROUNDS
    turns += [("ours", ENTROPY_COUNT), ("entropy", ENTROPY_COUNT)] * 2
    costs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in [*turns, ("ours", MANY), ("methods", COUNT)]:
        costs.setdefault(turn, []).append(run_part(turn[0], model, turn[1]))
    print(f"\nCalibrating EfficientNet-Lite0, median of {ROUNDS}, in turns")
    print(f"{'part':28}{'images':>7}{'seconds':>9}{'peak MB':>9}")
    for (part, count), runs in costs.items():
        print(f"{PARTS[part][0]:28}{count:7}{median_time(runs):9.2f}{median_peak(runs):9.0f}")
    ours, floor = (ratios(costs, part) for part in ("minmax", "floor"))
    theirs, own = (median_time(costs[part, ENTROPY_COUNT]) for part in ("entropy", "ours"))
    entropy = theirs / own
    growth = median_peak(costs["ours", MANY]) / median_peak(costs["ours", COUNT]) - 1
    print(f"{1 / floor:.2f}x the floor (aim: at most 2.0)")
    print(f"{ours:.1f}x faster than ONNX Runtime min-max (aim: 3)")
    print(f"{entropy:.1f}x faster than ONNX Runtime entropy, {ENTROPY_COUNT} images (aim: 10)")
    print(f"{growth:+.1%} memory from {COUNT} to {MANY} images (aim: within 5 %)")


def ratios(costs: dict[tuple[str, int], list[dict[str, float]]], part: str) -> float:
    """Return the median ratio of a part's duration to ours."""
    pairs = zip(costs[part, COUNT], costs["ours", COUNT], strict=True)
    return statistics.median(other["seconds"] / our["seconds"] for other, our in pairs)


def median_time(runs: list[dict[str, float]]) -> float:
    return statistics.median(run["seconds"] for run in runs)


def median_peak(runs: list[dict[str, float]]) -> float:
    return statistics.median(run["peak_mb"] for run in runs)


def run_part(part: str, model: Path, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.calibration", "--part", part]
    command += ["--model", str(model), "--count", str(count)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stderr)
    cost: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return cost


def measure(work: Callable[[], None]) -> dict[str, float]:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def open_calibration_images(model: Path, count: int, folder: Path) -> Images:
    """Return `count` images, repeating them if there are fewer."""
    files = sorted(IMAGES.iterdir())
    listed = folder / "images.txt"
    listed.write_text("\n".join(str(files[at % len(files)]) for at in range(count)))
    return open_images(ImageChoice(listed), onnx_io.inputs(onnx_io.load(model)), LITE0)


def floor(model: Path, count: int, folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options)
    for batch in open_calibration_images(model, count, folder).batches(8):
        session.run(None, batch.feeds)


def ours(model: Path, count: int, folder: Path) -> None:
    open_calibration_images(model, count, folder)
    settings = {
        "model": str(model),
        "calibration.images": folder / "images.txt",
        "calibration.count": count,
        **{f"preprocess.{key}": value for key, value in LITE0_SETTINGS.items()},
    }
    context = JobContext(config_file.load(None, settings), Cache(model.parent / "cache"))
    calibrate(context, folder / "c.npz")


def methods(model: Path, count: int, folder: Path) -> None:
    """Compute the ranges of every method from a calibration file, for both kinds of grid."""
    calibration = load_calibration(model.parent / "c.npz")
    for symmetric in (True, False):
        for name in METHODS:
            method, grid = find_method(name), Grid(symmetric=symmetric)
            for summary in calibration.summaries.values():
                if summary.size:
                    method(summary, grid)


def onnx_runtime(method: str) -> Callable[[Path, int, Path], None]:
    """Return a run of ONNX Runtime's `quantize_static` with this method, one image at a time."""

    def work(model: Path, count: int, folder: Path) -> None:
        batches = open_calibration_images(model, count, folder).batches(1)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> object:
                batch = next(batches, None)
                return None if batch is None else batch.feeds

        quantization.quantize_static(
            model,
            folder / "q.onnx",
            Reader(),
            calibrate_method=quantization.CalibrationMethod[method],
            per_channel=True,
        )

    return work


LITE0_SETTINGS = {
    "resize": 256,
    "interpolation": "bicubic",
    "mean": [127 / 255],
    "std": [128 / 255],
}
PARTS: dict[str, tuple[str, Callable[[Path, int, Path], None]]] = {
    "floor": ("decode and one forward", floor),
    "ours": ("qconvert calibrate", ours),
    "methods": ("all five methods, two grids", methods),
    "minmax": ("ONNX Runtime min-max", onnx_runtime("MinMax")),
    "entropy": ("ONNX Runtime entropy", onnx_runtime("Entropy")),
}


def run() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    arguments = parser.parse_args()
    if arguments.part is None:
        main()
        return
    with tempfile.TemporaryDirectory() as folder:
        work = PARTS[arguments.part][1]
        cost = measure(lambda: work(arguments.model, arguments.count, Path(folder)))
        calibration = Path(folder) / "c.npz"
        if calibration.exists() and arguments.count == COUNT:
            calibration.replace(arguments.model.parent / "c.npz")
        print(json.dumps(cost))


if __name__ == "__main__":
    run()
