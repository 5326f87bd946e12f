"""What calibration costs: against its floor, and against ONNX Runtime's own, on the same images.

Each part runs in a process of its own, the parts take turns, and the clock starts when all modules
are imported. The floor is decoding every image and one plain FP32 forward. ONNX Runtime reads the
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

from qconvert.calibrate import calibration_file
from qconvert.calibrate.methods import compute_ranges
from qconvert.core import config_file, onnx_io
from qconvert.core.cache import Cache
from qconvert.core.scales import Grid
from qconvert.images import ImageChoice, open_images
from qconvert.images.batches import Images
from qconvert.images.preprocess import Preprocess
from qconvert.run.calibrate import calibrate
from qconvert.run.context import JobContext

IMAGES = Path(__file__).resolve().parents[2] / "shared/data/imagenet-500/calib"
COUNT, MANY, ROUNDS = 200, 5000, 3
# ONNX Runtime keeps all activations for its entropy: 66 MB an image of EfficientNet-Lite0.
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
        # In a process of its own: a child's peak memory starts from that of its parent.
        subprocess.run([sys.executable, "-c", EXPORT, str(model)], check=True)
        compare(model)


def compare(model: Path) -> None:
    child("ours", model, 16)  # prepares the model, and reads the files once
    turns = [("floor", COUNT), ("ours", COUNT), ("minmax", COUNT)] * ROUNDS
    turns += [("ours", ENTROPY_COUNT), ("entropy", ENTROPY_COUNT)] * 2
    costs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in [*turns, ("ours", MANY), ("methods", COUNT)]:
        costs.setdefault(turn, []).append(child(turn[0], model, turn[1]))
    print(f"\nCalibrating EfficientNet-Lite0, median of {ROUNDS}, in turns")
    print(f"{'part':28}{'images':>7}{'seconds':>9}{'peak MB':>9}")
    for (part, count), found in costs.items():
        print(f"{PARTS[part][0]:28}{count:7}{took(found):9.2f}{peak(found):9.0f}")
    ours, floor = (ratios(costs, part) for part in ("minmax", "floor"))
    entropy = took(costs["entropy", ENTROPY_COUNT]) / took(costs["ours", ENTROPY_COUNT])
    growth = peak(costs["ours", MANY]) / peak(costs["ours", COUNT]) - 1
    print(f"{1 / floor:.2f}x the floor (aim: at most 2.0)")
    print(f"{ours:.1f}x faster than ONNX Runtime min-max (aim: 3)")
    print(f"{entropy:.1f}x faster than ONNX Runtime entropy, {ENTROPY_COUNT} images (aim: 10)")
    print(f"{growth:+.1%} memory from {COUNT} to {MANY} images (aim: within 5 %)")


def ratios(costs: dict[tuple[str, int], list[dict[str, float]]], part: str) -> float:
    """Return the median over the turns of how much longer a part took than ours."""
    pairs = zip(costs[part, COUNT], costs["ours", COUNT], strict=True)
    return statistics.median(other["seconds"] / our["seconds"] for other, our in pairs)


def took(found: list[dict[str, float]]) -> float:
    return statistics.median(each["seconds"] for each in found)


def peak(found: list[dict[str, float]]) -> float:
    return statistics.median(each["peak_mb"] for each in found)


def child(part: str, model: Path, count: int) -> dict[str, float]:
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


def pictures(model: Path, count: int, folder: Path) -> Images:
    """Return so many images, the same again and again where there are fewer."""
    files = sorted(IMAGES.iterdir())
    listed = folder / "images.txt"
    listed.write_text("\n".join(str(files[at % len(files)]) for at in range(count)))
    return open_images(ImageChoice(listed), onnx_io.inputs(onnx_io.load(model)), LITE0)


def floor(model: Path, count: int, folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options)
    for batch in pictures(model, count, folder).batches(8):
        session.run(None, batch.feeds)


def ours(model: Path, count: int, folder: Path) -> None:
    pictures(model, count, folder)
    given = {
        "model": str(model),
        "calibration.images": folder / "images.txt",
        "calibration.count": count,
        **{f"preprocess.{key}": value for key, value in LITE0_SETTINGS.items()},
    }
    context = JobContext(config_file.load(None, given), Cache(model.parent / "store"))
    calibrate(context, folder / "c.npz")


def methods(model: Path, count: int, folder: Path) -> None:
    """Compute every method from the file of an earlier calibration, for both kinds of grid."""
    found = calibration_file.load(model.parent / "c.npz")
    for symmetric in (True, False):
        for name in METHODS:
            compute_ranges(found.summaries, name, Grid(symmetric=symmetric))


def runtime(method: str) -> Callable[[Path, int, Path], None]:
    """Return ONNX Runtime's `quantize_static` with this method, one image at a time as it wants."""

    def work(model: Path, count: int, folder: Path) -> None:
        batches = pictures(model, count, folder).batches(1)

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
    "minmax": ("ONNX Runtime min-max", runtime("MinMax")),
    "entropy": ("ONNX Runtime entropy", runtime("Entropy")),
}


def one_part() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    chosen = parser.parse_args()
    if chosen.part is None:
        main()
        return
    with tempfile.TemporaryDirectory() as folder:
        work = PARTS[chosen.part][1]
        cost = measure(lambda: work(chosen.model, chosen.count, Path(folder)))
        kept = Path(folder) / "c.npz"
        if kept.exists() and chosen.count == COUNT:
            kept.replace(chosen.model.parent / "c.npz")
        print(json.dumps(cost))


if __name__ == "__main__":
    one_part()
