"""mAP and mIoU of the demo's detector and segmenter in INT8, compared with other quantizers.

Every tool calibrates on the same drawn pictures, and `qconvert evaluate` scores all files against
the exact boxes or masks of other pictures.

    python -m benchmarks.demo_tasks                   # both networks and all tools
    python -m benchmarks.demo_tasks --work DIR        # keep pictures and files in DIR
    python -m benchmarks.demo_tasks --modelopt PYTHON # an environment that has ModelOpt
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnxruntime import quantization

from benchmarks.detectors import HISTOGRAM_COUNT, MODELOPT, ORT
from benchmarks.quantization import run_python, run_uncached
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.demo import demo_files, generator, scenes
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import Preprocess
from qconvert.sources import onnx_file

TASKS: tuple[demo_files.Task, ...] = ("detect", "segment")
CALIBRATION_COUNT, EVALUATION_COUNT = 128, 500
MAX_LOSS = 0.5


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where pictures and files are kept")
    parser.add_argument("--modelopt", type=Path, default=sys.executable, help="a Python with it")
    arguments = parser.parse_args(words)
    logging.getLogger().setLevel(logging.ERROR)  # ORT's advice is about graphs not cleaned yet
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            work = (arguments.work or Path(folder)) / task
            draw(work, task)
            compare(work, task, quantize(work, task, arguments.modelopt))


def draw(work: Path, task: demo_files.Task) -> None:
    """Draw the pictures with their truth, unless they are there."""
    assert task != "classify"
    for name, seed, count in (
        ("calibration", generator.CALIBRATION_SEED, CALIBRATION_COUNT),
        ("evaluation", generator.EVALUATION_SEED, EVALUATION_COUNT),
    ):
        if not (work / name).is_dir():
            scenes.write_images(work / name, seed, count, task)


def quantize(work: Path, task: demo_files.Task, modelopt: Path) -> dict[str, Path]:
    """Return the INT8 files of every tool; existing files are reused."""
    model, files = demo_files.NETWORKS[task], dict[str, Path]()
    for backend in ("cpu", "tensorrt"):
        path = files[f"qconvert {backend}"] = work / f"qconvert-{backend}.onnx"
        if not path.exists():
            command = ["-m", "qconvert", "quantize", model, "-o", path, "--backend", backend]
            seconds = run_uncached(*command, "--images", work / "calibration" / "images")
            print(f"{task}, {path.name}: {seconds:.0f} s, calibration included", flush=True)
    feeds = calibration_feeds(work, model)
    for name, options in ORT.items():
        path = files[name] = work / f"{name.replace(' ', '-')}.onnx"
        count = HISTOGRAM_COUNT if "calibrate_method" in options else CALIBRATION_COUNT
        if not path.exists():
            quantization.quantize_static(model, path, Reader(feeds[:count]), **options)
    path, data = work / "ModelOpt.onnx", work / "modelopt.npz"
    if not path.exists():
        np.savez(data, **{name: np.concatenate([row[name] for row in feeds]) for name in feeds[0]})
        command = [str(modelopt), "-c", MODELOPT, *map(str, (model, data, path))]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        data.unlink()
        if process.returncode:
            lines = process.stderr.strip().splitlines()
            print(f"ModelOpt: not measured, {lines[-1] if lines else 'it failed'}")
            return files
    return {**files, "ModelOpt": path}


def calibration_feeds(work: Path, model: Path) -> list[Tensors]:
    """Return the pictures as the network takes them, one at a time."""
    source = onnx_io.load(model)
    preprocess = Preprocess.from_dict(json.loads(source.metadata_props[onnx_file.PREPROCESS_KEY]))
    choice = ImageChoice(work / "calibration" / "images")
    images = open_images(choice, onnx_io.inputs(source), preprocess)
    return [batch.feeds for batch in images.batches(1)]


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds pictures to ONNX Runtime."""

    def __init__(self, feeds: Sequence[Tensors]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Tensors | None:
        return next(self.feeds, None)


def compare(work: Path, task: demo_files.Task, files: Mapping[str, Path]) -> None:
    """Print the metric of every file, its change against FP32, and the verdict."""
    paths = {"FP32": demo_files.NETWORKS[task], **files}
    command = ["-m", "qconvert", "evaluate", *paths.values(), "--json"]
    report = json.loads(run_python(*command, "--eval", work / "evaluation" / "images"))
    print(f"\n{task}, {EVALUATION_COUNT} pictures with exact truth")
    print(f"{'file':28}{'metric':>10}{'change pp':>18}{'agrees':>9}")
    changes = {}
    for name, variant in zip(paths, report["variants"], strict=True):
        accuracy = variant["accuracy"]
        metric, value = accuracy["primary"], 100 * accuracy["metrics"][accuracy["primary"]]
        changes[name] = accuracy["delta_pp"]
        change = f"{accuracy['delta_pp']:+.2f} ± {accuracy['half_width_pp']:.2f}"
        print(f"{name:28}{metric:>5} {value:4.1f}{change:>18}{accuracy['agreement']:8.2f}%")
    ours, peers = (
        changes["qconvert cpu"],
        [v for n, v in changes.items() if n in ORT or n == "ModelOpt"],
    )
    claims = {
        f"loses at most {MAX_LOSS} points": ours >= -MAX_LOSS,
        "loses no more than every other tool": ours >= max(peers),
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{task}: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
