"""INT8 of detectors that packages ship, compared with ONNX Runtime's and ModelOpt's quantizers.

Every tool calibrates a network on the same pictures; the boxes of its files are compared with those
of FP32 on others, without labels. Graphs in TensorRT's scheme run node by node: their accuracy is
valid on the CPU, their speed is not here.

ModelOpt pins other releases of ONNX and ONNX Runtime than qconvert takes, so it needs an
environment of its own, with `nvidia-modelopt[onnx]`; without it the comparison leaves it out.

    python -m benchmarks.detectors                            # all networks and tools
    python -m benchmarks.detectors --work DIR                 # keep networks and files in DIR
    python -m benchmarks.detectors --work DIR --net ddddocr   # networks with this in their name
    python -m benchmarks.detectors --modelopt PYTHON          # an environment that has ModelOpt
"""

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import quantization

from benchmarks.against_fp32 import THREADS, Array, best_seconds
from benchmarks.detector_nets import (
    CALIBRATION_SEED,
    EVALUATION,
    EVALUATION_SEED,
    MIN_SCORE,
    NETS,
    Boxes,
    Net,
    fetch,
    overlaps,
    save_pictures,
)
from benchmarks.quantization import run_python, run_uncached
from qconvert.backends.int8_class import int8_class
from qconvert.backends.ort import has_float_biases
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.images import ImageChoice, Images, open_images

CALIBRATION_COUNT, EVALUATION_COUNT, SPEED_ROUNDS = 64, 80, 5
MIN_OVERLAP, MIN_AGREEMENT = 0.5, 98.0
BACKENDS = ("cpu", "tensorrt")
METHODS = quantization.CalibrationMethod
SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
U8S8 = {"per_channel": True, "activation_type": quantization.QuantType.QUInt8}
# What users do when a head returns no boxes: only convolutions are quantized.
CONVOLUTIONS = {**U8S8, "op_types_to_quantize": ["Conv"]}
# The histograms of ONNX Runtime's other methods hold every tensor of every picture in memory.
ORT: Mapping[str, Mapping[str, object]] = {
    "ORT defaults": {},
    "ORT U8S8 per channel": U8S8,
    "ORT S8S8 per channel": {"per_channel": True, "extra_options": SYMMETRIC},
    "ORT Conv only": CONVOLUTIONS,
    "ORT Conv only, percentile": {**CONVOLUTIONS, "calibrate_method": METHODS.Percentile},
    "ORT Conv only, entropy": {**CONVOLUTIONS, "calibrate_method": METHODS.Entropy},
}
HISTOGRAM_COUNT = 16
MODELOPT = """
import sys, numpy, modelopt.onnx.quantization as quantization
quantization.quantize(sys.argv[1], calibration_data=dict(numpy.load(sys.argv[2])),
                      calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=sys.argv[3])
"""
RunOutputs = Callable[[Tensors], list[Array]]


@dataclass(frozen=True)
class Score:
    """How a file agrees with FP32: boxes in percent, their mean error in pixels, and of scores."""

    agrees: float
    pixels: float
    scores: float
    boxes: int
    megabytes: float


@dataclass(frozen=True, eq=False)
class Reference:
    """The FP32 network, its inputs on pictures in which it sees something, and its boxes there."""

    net: Net
    model: Path
    feeds: list[Tensors]
    boxes: list[Boxes]


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where networks, pictures and files are kept")
    parser.add_argument("--net", default="", help="only networks with this in their name")
    parser.add_argument("--modelopt", type=Path, default=sys.executable, help="a Python with it")
    parser.add_argument(
        "--rounds", type=int, default=SPEED_ROUNDS, help="of the clock; 0: no speed"
    )
    parser.add_argument("--threads", type=int, default=THREADS, help="of the clock")
    parser.add_argument("--ours", action="store_true", help="only qconvert's files")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    arguments = parser.parse_args(words)
    logging.getLogger().setLevel(logging.ERROR)  # ORT's advice is about graphs not cleaned yet
    if not EVALUATION.is_dir():
        print("Detectors: not measured, the images are not here (eval of imagenet-500)")
        return
    names = [name for name in NETS if arguments.net in name]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            work = (arguments.work or Path(folder)) / name.replace(" ", "-")
            reference = prepare_reference(NETS[name], work)
            files = quantize_with_qconvert(reference, arguments.backends)
            if not arguments.ours:
                files |= quantize_with_ort(reference)
                files |= quantize_with_modelopt(reference, arguments.modelopt)
            rounds, threads = arguments.rounds, arguments.threads
            speeds = speedups(reference, files, rounds, threads) if rounds else {}
            print_table(name, reference, files, speeds)


def print_table(
    name: str, reference: Reference, files: Mapping[str, Path], speeds: Mapping[str, float]
) -> None:
    """Compare the files with FP32, and print the table and the verdict."""
    scores = {file: score_file(path, reference) for file, path in files.items()}
    count = sum((boxes.scores >= MIN_SCORE).sum() for boxes in reference.boxes)
    print(f"\n{name}: {count} boxes of FP32 in {len(reference.feeds)} pictures; {int8_class()}")
    print(f"{'file':28}{'MB':>6}{'agrees':>9}{'boxes':>7}{'pixels':>8}{'score':>8}{'speed':>8}")
    for file, score in scores.items():
        row = f"{file:28}{score.megabytes:6.2f}{score.agrees:8.1f}%{score.boxes:7}"
        speed = f"{speeds[file]:7.2f}x" if file in speeds else ""
        print(f"{row}{score.pixels:8.2f}{score.scores:8.4f}{speed}", flush=True)
    peers = [score.agrees for file, score in scores.items() if "qconvert" not in file]
    for backend in (name for name in BACKENDS if f"qconvert {name}" in scores):
        ours = scores[f"qconvert {backend}"].agrees
        claims = {
            f"agrees on {MIN_AGREEMENT} %": ours >= MIN_AGREEMENT,
            "agrees as much as every other tool": ours >= max(peers, default=0.0),
        }
        missed = [claim for claim, held in claims.items() if not held]
        verdict = f"MISSED {', '.join(missed)}" if missed else "every aim reached"
        print(f"{name}, {backend}: {verdict}", flush=True)


def prepare_reference(net: Net, work: Path) -> Reference:
    """Fetch, clean and run a network; existing files are reused."""
    downloaded, model = fetch(net, work), work / "fp32.onnx"
    if not model.exists():
        run_python("-m", "qconvert", "export", downloaded, "-o", model)
    save_pictures(net, work / "calibration", CALIBRATION_SEED, CALIBRATION_COUNT)
    pictures = save_pictures(net, work / "evaluation", EVALUATION_SEED, EVALUATION_COUNT)
    run, feeds, boxes = open_file(model), list[Tensors](), list[Boxes]()
    for inputs in read_pictures(net, model, pictures):
        detected = net.decode(run(inputs), net.size)
        if (detected.scores >= MIN_SCORE).any() and len(feeds) < EVALUATION_COUNT:
            feeds.append(inputs)
            boxes.append(detected)
    return Reference(net, model, feeds, boxes)


def read_pictures(
    net: Net, model: Path, pictures: Path, count: int | None = None
) -> Iterator[Tensors]:
    """Yield the pictures as inputs; `count` of them are those that qconvert's `--count` takes."""
    choice = ImageChoice(pictures, count)
    images: Images = open_images(choice, onnx_io.inputs(onnx_io.load(model)), net.preprocess)
    for batch in images.batches(1):
        yield batch.feeds


def quantize_with_qconvert(reference: Reference, backends: Sequence[str]) -> dict[str, Path]:
    files = {}
    for backend in backends:
        path = reference.model.with_name(f"qconvert-{backend}.onnx")
        if not path.exists():
            command = ["-m", "qconvert", "quantize", reference.model, "-o", path]
            command += ["--images", calibration_pictures(reference), "--count", CALIBRATION_COUNT]
            duration = run_uncached(
                *command, *preprocess_options(reference.net), "--backend", backend
            )
            print(f"{path.name}: {duration:.0f} s, calibration included", flush=True)
        files[f"qconvert {backend}"] = path
    return files


def calibration_pictures(reference: Reference) -> Path:
    return save_pictures(
        reference.net, reference.model.with_name("calibration"), CALIBRATION_SEED, CALIBRATION_COUNT
    )


def preprocess_options(net: Net) -> list[object]:
    """Return the preprocessing of a network as options of the command."""
    values, resize = net.preprocess, net.preprocess.resize
    size = "x".join(map(str, resize)) if isinstance(resize, tuple) else resize
    numbers = [",".join(map(str, numbers)) for numbers in (values.mean, values.std)]
    preset = "raw" if values.divisor == 1.0 else "unit"
    options: list[object] = ["--preprocess", preset, "--resize", size]
    options += ["--mean", numbers[0], "--std", numbers[1]]
    return [*options, "--set", f"preprocess.colours={values.colours}"]


def quantize_with_ort(reference: Reference) -> dict[str, Path]:
    files = {}
    for name, options in ORT.items():
        path = reference.model.with_name(f"{name.replace(' ', '-')}.onnx")
        count = HISTOGRAM_COUNT if "calibrate_method" in options else CALIBRATION_COUNT
        if not path.exists():
            quantization.quantize_static(reference.model, path, Reader(reference, count), **options)
        files[name] = path
    return files


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration pictures to ONNX Runtime, one at a time."""

    def __init__(self, reference: Reference, count: int) -> None:
        pictures = calibration_pictures(reference)
        self.feeds = read_pictures(reference.net, reference.model, pictures, count)

    def get_next(self) -> Tensors | None:
        return next(self.feeds, None)


def quantize_with_modelopt(reference: Reference, python: Path) -> dict[str, Path]:
    """Return ModelOpt's file, or none where it is not installed or refuses the network."""
    path, data = (reference.model.with_name(name) for name in ("ModelOpt.onnx", "modelopt.npz"))
    if not path.exists():
        pictures = calibration_pictures(reference)
        rows = list(read_pictures(reference.net, reference.model, pictures, CALIBRATION_COUNT))
        np.savez(data, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        command = [str(python), "-c", MODELOPT, *map(str, (reference.model, data, path))]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        data.unlink()
        if process.returncode:
            lines = process.stderr.strip().splitlines()
            print(f"ModelOpt: not measured, {lines[-1] if lines else 'it failed'}")
            return {}
    return {"ModelOpt": path}


def open_file(path: Path, threads: int = THREADS) -> RunOutputs:
    """Open a file with ONNX Runtime as a user would; TensorRT's scheme runs node by node."""
    options = onnxruntime.SessionOptions()
    unfused = has_float_biases(onnx_io.load(path))
    options.add_session_config_entry("session.disable_quant_qdq", str(int(unfused)))
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def score_file(path: Path, reference: Reference) -> Score:
    """Compare the boxes of a file with those of FP32."""
    run, net = open_file(path), reference.net
    matched = total = count = 0
    pixels, scores = list[Array](), list[Array]()
    for inputs, expected in zip(reference.feeds, reference.boxes, strict=True):
        boxes = net.decode(run(inputs), net.size)
        first, second = match_boxes(expected, boxes)
        pairs = (expected.scores[first] >= MIN_SCORE) * 1 + (boxes.scores[second] >= MIN_SCORE)
        matched += int(pairs.sum())
        total += int((expected.scores >= MIN_SCORE).sum() + (boxes.scores >= MIN_SCORE).sum())
        count += int((boxes.scores >= MIN_SCORE).sum())
        pixels.append(np.abs(expected.corners[first] - boxes.corners[second]).mean(1))
        scores.append(np.abs(expected.scores[first] - boxes.scores[second]))
    errors = [np.concatenate(rows) for rows in (pixels, scores)]
    means = [float(rows.mean()) if rows.size else float("nan") for rows in errors]
    size = sum(file.stat().st_size for file in onnx_io.model_files(path)) / 1e6
    return Score(100 * matched / max(total, 1), means[0], means[1], count, size)


def match_boxes(first: Boxes, second: Boxes) -> tuple[list[int], list[int]]:
    """Return the indices of pairs of one class that overlap, the best pairs first."""
    ratios = overlaps(first.corners, second.corners)
    ratios[first.classes[:, None] != second.classes[None]] = 0
    pairs: tuple[list[int], list[int]] = ([], [])
    while ratios.size and ratios.max() >= MIN_OVERLAP:
        row, column = (int(index) for index in np.unravel_index(ratios.argmax(), ratios.shape))
        pairs[0].append(row)
        pairs[1].append(column)
        ratios[row], ratios[:, column] = 0, 0
    return pairs


def speedups(
    reference: Reference, files: Mapping[str, Path], rounds: int, threads: int
) -> dict[str, float]:
    """Return how many times faster than FP32 the files in a scheme of the CPU are."""
    paths = {"FP32": reference.model, **files}
    paths = {
        name: path
        for name, path in paths.items()
        if name == "FP32" or not has_float_biases(onnx_io.load(path))
    }
    name = next(iter(reference.feeds[0]))
    runs = {file: open_file(path, threads) for file, path in paths.items()}
    runners = {file: (lambda images, run=run: run({name: images})[0]) for file, run in runs.items()}
    seconds = best_seconds(runners, np.asarray(reference.feeds[0][name]), rounds)
    return {file: seconds["FP32"] / seconds[file] for file in seconds if file != "FP32"}


if __name__ == "__main__":
    main(sys.argv[1:])
