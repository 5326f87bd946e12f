"""What calibration costs, as ratios to one plain forward and to ONNX Runtime's own calibration.

    python -m benchmarks.calibration lite0.onnx [folder of images]

Each part runs in a process of its own, so that its peak memory is its own. To reach: at most 2.0
times the time of decoding and one plain FP32 forward; 10 times faster than ONNX Runtime's entropy
and 3 times faster than its min-max, decoding apart, which is the same for all; below 700 MB, and
within 5 % of that for 5,000 images.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IMAGES = Path(__file__).resolve().parents[2] / "shared/data/imagenet-500/calib"
Pixels = NDArray[np.float32]

PLAIN_BATCH = 8
# As fast an image as 8, and memory is mostly the activations of one batch.
BATCH = 4
# ONNX Runtime keeps all activations for its entropy: 66 MB an image of EfficientNet-Lite0.
ENTROPY_COUNT = 48


def main() -> int:
    """Compare everything, or measure the one part that the command line names."""
    arguments = parse()
    if not arguments.images.is_dir():
        print(f"needs images, there is no folder {arguments.images}: name one after the model")
        return 2
    if arguments.part:
        print(json.dumps(measure(arguments)))
        return 0
    compare(arguments.model, arguments.images)
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="?", default=IMAGES)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--count", type=int, default=200)
    return parser.parse_args()


def compare(model: Path, images: Path) -> None:
    """Run every part and print what it cost."""
    child("plain", 16, model, images)  # the first reading of the files is not counted
    rows = [
        (name, count, child(name, count, model, images))
        for name, count in (
            *[("decode", 200), ("plain", 200), ("collect", 200), ("ort-minmax", 200)] * 3,
            *[("decode", ENTROPY_COUNT), ("collect", ENTROPY_COUNT)] * 3,
            ("ort-entropy", ENTROPY_COUNT),
            ("collect", 5000),
        )
    ]
    print(f"{'part':12} {'images':>6} {'seconds':>8} {'peak MB':>8}")
    for name, count, cost in rows:
        print(f"{name:12} {count:6} {cost['seconds']:8.2f} {cost['peak_mb']:8.0f}")
    least: dict[tuple[str, int], float] = {}
    for name, count, cost in rows:
        least[name, count] = min(cost["seconds"], least.get((name, count), np.inf))
    once = {part: least[part, 200] - least["decode", 200] for part in ("collect", "ort-minmax")}
    few = {
        part: least[part, ENTROPY_COUNT] - least["decode", ENTROPY_COUNT]
        for part in ("collect", "ort-entropy")
    }
    peaks = [cost["peak_mb"] for name, count, cost in rows if name == "collect" and count >= 200]
    whole = least["collect", 200] / least["plain", 200]
    print(f"{whole:.2f} times decoding and one plain forward (at most 2.0)")
    print(f"{once['ort-minmax'] / once['collect']:.1f} times faster than min-max (at least 3)")
    print(f"{few['ort-entropy'] / few['collect']:.1f} times faster than entropy (at least 10)")
    print(f"{peaks[-1] / min(peaks) - 1:+.1%} memory from 200 to 5,000 images (at most +5 %)")


def child(part: str, count: int, model: Path, images: Path) -> dict[str, float]:
    """Measure one part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.calibration", str(model), str(images)]
    command += ["--part", part, "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    cost: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return cost


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of the work itself, and the peak memory of the whole process."""
    found = sorted(arguments.images.iterdir())
    files = [found[at % len(found)] for at in range(arguments.count)]
    work = PARTS[arguments.part](arguments.model, files)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def decoding(model: Path, files: list[Path]) -> Callable[[], None]:
    """Return decoding alone."""

    def work() -> None:
        for _ in batches(files):
            pass

    return work


def plain(model: Path, files: list[Path]) -> Callable[[], None]:
    """Return decoding and one forward; the session is there before the clock starts."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def work() -> None:
        for _, batch in batches(files, PLAIN_BATCH):
            session.run(None, {name: batch})

    return work


def collecting(model: Path, files: list[Path]) -> Callable[[], None]:
    """Return decoding, the state of all methods, and the ranges of the default one."""
    from qconvert import onnx_io
    from qconvert.backends.ort import open_cpu
    from qconvert.calibrate.calibration import Calibration, Image, Origin
    from qconvert.calibrate.collect import collect
    from qconvert.calibrate.methods import ranges
    from qconvert.calibrate.ranges_file import save
    from qconvert.graph.taps import tap
    from qconvert.scales import Grid

    tapped = tap(onnx_io.load(model))
    run = open_cpu(tapped.model)
    name = str(tapped.model.graph.inputs[0].name)
    listed = tuple(Image(f"{at}-{path.name}", "0" * 64) for at, path in enumerate(files))
    tensors = tuple(each.tensor for each in tapped.taps)
    start = Calibration(Origin("model", tensors, listed, {}, "benchmark", exact=False))

    def work() -> None:
        numbered = (
            (range(first, first + len(batch)), {name: batch}) for first, batch in batches(files)
        )
        found = collect(run, numbered, tapped, start)
        ranges(found.summaries, "mse", Grid())
        with tempfile.TemporaryDirectory() as folder:
            save(found, Path(folder) / "c.npz")

    return work


def static(method: str) -> Callable[[Path, list[Path]], Callable[[], None]]:
    """Return ONNX Runtime's calibration of the same images, decoding included."""

    def prepare(model: Path, files: list[Path]) -> Callable[[], None]:
        import onnxruntime
        from onnxruntime import quantization

        name = onnxruntime.InferenceSession(str(model)).get_inputs()[0].name

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            """One batch after the other."""

            def __init__(self) -> None:
                self.left = batches(files)

            def get_next(self) -> dict[str, Pixels] | None:
                """Return the next batch, None after the last."""
                return next(({name: batch} for _, batch in self.left), None)

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                quantization.quantize_static(
                    model,
                    Path(folder) / "q.onnx",
                    Reader(),
                    calibrate_method=quantization.CalibrationMethod[method],
                    per_channel=True,
                )

        return work

    return prepare


def batches(files: list[Path], size: int = BATCH) -> Iterator[tuple[int, Pixels]]:
    """Yield the place of the first image, and the images."""
    for first in range(0, len(files), size):
        yield first, np.stack([decode(path) for path in files[first : first + size]])


def decode(path: Path) -> Pixels:
    """Resize the shorter side to 256, cut out 224, scale to about -1 .. 1."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = 256 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    return np.divide(pixels - 127, 128, dtype=np.float32).transpose(2, 0, 1)


PARTS = {
    "decode": decoding,
    "plain": plain,
    "collect": collecting,
    "ort-minmax": static("MinMax"),
    "ort-entropy": static("Entropy"),
}

if __name__ == "__main__":
    sys.exit(main())
