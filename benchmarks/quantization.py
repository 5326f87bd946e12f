"""Accuracy, size and speed of INT8, compared with ONNX Runtime's quantizer.

Every tool calibrates EfficientNet-Lite0 on the same 200 images through the same reader; the files
are compared with FP32 on 300 others. Every graph runs on ONNX Runtime's CPU provider, as a user
would open it, so that ONNX Runtime's U8S8 file is wrong on x86 without VNNI. The accuracy of
TensorRT's scheme (S8S8) is valid there, its speed is meaningless.

    python -m benchmarks.quantization                             # all tools, and the verdict
    python -m benchmarks.quantization --work DIR                  # keep the prepared files in DIR
    python -m benchmarks.quantization --work DIR --score X.onnx   # this file against FP32
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnxruntime import quantization

from benchmarks.against_fp32 import (
    BATCHES,
    THREADS,
    Array,
    Reference,
    Score,
    open_onnx,
    run_model,
    score_model,
    speedups,
)
from benchmarks.calibration import COUNT, IMAGES, LITE0
from qconvert.backends.int8_class import int8_class
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import Preprocess

EVALUATION = IMAGES.parent / "eval"
ROUNDS = 15
# Bytes are multiplied at most twice as fast as floats where the CPU has no dot product of them.
MAX_MEGABYTES, MIN_SPEEDUP = 5.2, 1.5 if int8_class().limit else 2.2
RESIZES = {"lite0": 256, "lite1": 272, "lite2": 292}  # images are 32 pixels smaller
EXPORT = """
import sys
from pathlib import Path
from benchmarks import nets
name, size = sys.argv[2], int(sys.argv[3])
nets.export(nets.lite(name), Path(sys.argv[1]), optimize=True, size=size)
"""

S8S8 = {
    "activation_type": quantization.QuantType.QInt8,
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
}
ORT = {"ORT U8S8": {"activation_type": quantization.QuantType.QUInt8}, "ORT S8S8": S8S8}
PEERS = {"cpu": "ORT U8S8", "tensorrt": "ORT S8S8"}
EFFORTS = ("none", "quick", "default", "thorough")
# The minimum SQNR of the outputs in dB that each effort must reach.
SQNR = {"cpu": {"default": 24.5, "thorough": 27.0}, "tensorrt": {"default": 22.0, "thorough": 24.5}}
MIN_AGREEMENT = 99.0


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where prepared files are kept")
    parser.add_argument("--score", type=Path, nargs="+", default=[], help="only these files")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the clock; 0 for no speed")
    arguments = parser.parse_args(words)
    if not EVALUATION.is_dir():
        print("Quantization: not measured, the images are not here (eval of imagenet-500)")
        return
    with tempfile.TemporaryDirectory() as folder:
        reference = prepare_reference(arguments.work or Path(folder))
        if arguments.score:
            compare(reference, {str(path): path for path in arguments.score}, arguments.rounds)
            return
        scores, speeds = compare(reference, quantize_all(reference.model), arguments.rounds)
        for backend, peer in PEERS.items():
            for effort in EFFORTS:
                name = f"qconvert {backend} {effort}"
                print_verdict(name, peer, scores, speeds)
                if effort in SQNR[backend]:
                    print_effort_verdict(name, scores, SQNR[backend][effort])


def compare(
    reference: Reference, models: Mapping[str, Path], rounds: int
) -> tuple[dict[str, Score], dict[str, Array]]:
    models = {"FP32": reference.model, **models}
    scores = {name: score_model(path, reference) for name, path in models.items()}
    runners = {name: open_onnx(path) for name, path in models.items()} if rounds else {}
    speeds = speedups(runners, "FP32", reference.images, rounds) if rounds else {}
    print(f"\nEfficientNet-Lite0, {len(reference.labels)} images, CPU provider, {THREADS} threads")
    print(f"{int8_class()}")
    if speeds:
        batches = " and ".join(map(str, BATCHES))
        print(f"speed against FP32 at batch {batches}, best of {rounds} turns")
    print(f"{'file':24}{'MB':>6}{'top-1':>7}{'agrees':>8}{'SQNR':>7}{'KL':>8}{'speed':>14}")
    for name, result in scores.items():
        row = f"{name[-23:]:24}{result.megabytes:6.2f}{result.top1:7.1f}{result.agrees:8.1f}"
        speed = "".join(f"{gain:6.2f}x" for gain in speeds.get(name, ()))
        print(f"{row}{result.sqnr:7.2f}{result.kl:8.4f}{speed}")
    print("TensorRT (S8S8): accuracy of the same graph on the CPU; its speed is not here")
    return scores, speeds


def print_verdict(
    name: str, peer: str, scores: Mapping[str, Score], speeds: Mapping[str, Array]
) -> None:
    """Print whether one of our files reaches its aims."""
    ours, theirs = scores[name], scores[peer]
    claims = {
        f"agrees as much as {peer}": ours.agrees >= theirs.agrees,
        f"SQNR as high as {peer}": ours.sqnr >= theirs.sqnr,
        f"KL as low as {peer}": ours.kl <= theirs.kl,
        f"at most {MAX_MEGABYTES} MB": ours.megabytes <= MAX_MEGABYTES,
    }
    if peer == PEERS["cpu"] and speeds:
        for batch, gain in zip(BATCHES, speeds[name], strict=True):
            claims[f"{MIN_SPEEDUP}x FP32 at batch {batch}"] = gain >= MIN_SPEEDUP
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{name}: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}")


def print_effort_verdict(name: str, scores: Mapping[str, Score], least: float) -> None:
    """Print whether an effort reaches its minimum SQNR, agreement and accuracy."""
    ours = scores[name]
    claims = {
        f"at least {least} dB": ours.sqnr >= least,
        f"agrees on {MIN_AGREEMENT} %": ours.agrees >= MIN_AGREEMENT,
        "top-1 one image lower at most": ours.top1 >= scores["FP32"].top1 - 100 / 299,
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{name}: {'MISSED ' + ', '.join(missed) if missed else 'as near as it should be'}")


def prepare_reference(work: Path, net: str = "lite0") -> Reference:
    """Export and clean a network and run it once; existing files are reused."""
    work.mkdir(parents=True, exist_ok=True)
    model, raw, reference = work / f"{net}.onnx", work / "raw.onnx", work / "reference.npz"
    if not model.exists():
        run_python("-c", EXPORT, raw, net, RESIZES[net] - 32)
        run_python("-m", "qconvert", "export", raw, "-o", model)
    if not reference.exists():
        images, labels = load_evaluation(model, net)
        np.savez(reference, images=images, labels=labels, logits=run_model(model, images))
    with np.load(reference) as stored:
        return Reference(model, stored["images"], stored["labels"], stored["logits"])


def load_evaluation(model: Path, net: str) -> tuple[Array, Array]:
    shape = onnx_io.inputs(onnx_io.load(model))
    images = open_images(ImageChoice(EVALUATION), shape, preprocess(net))
    pixels = [next(iter(batch.feeds.values())) for batch in images.batches(10)]
    return np.concatenate(pixels), np.array(images.labels)


def preprocess(net: str) -> Preprocess:
    return replace(LITE0, resize=RESIZES[net])


def quantize_command(model: Path, path: Path, *options: object, net: str = "lite0") -> list[object]:
    """Return the command that quantizes a model for the CPU or, by an option, another backend."""
    values = preprocess(net)
    command: list[object] = ["-m", "qconvert", "quantize", model, "--count", COUNT]
    command += ["--resize", values.resize, "--interpolation", values.interpolation]
    command += ["--mean", values.mean[0], "--std", values.std[0]]
    return [*command, "--images", IMAGES, "-o", path, *options]


def quantize_all(model: Path) -> dict[str, Path]:
    """Quantize the model with all tools, and return the files by name."""
    paths: dict[str, Path] = {}
    logging.getLogger().setLevel(logging.ERROR)  # ORT's advice is about graphs not cleaned yet
    for name, types in ORT.items():
        paths[name] = model.with_name(f"{name.replace(' ', '-')}.onnx")
        quantization.quantize_static(model, paths[name], Reader(model), per_channel=True, **types)
    for backend in PEERS:
        for effort in EFFORTS:
            path = model.with_name(f"qconvert-{backend}-{effort}.onnx")
            options = ("--backend", backend, "--effort", effort)
            duration = run_uncached(*quantize_command(model, path, *options))
            print(f"qconvert {backend} {effort}: {duration:.0f} s, calibration included")
            paths[f"qconvert {backend} {effort}"] = path
    return paths


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds our images to ONNX Runtime, one at a time."""

    def __init__(self, model: Path) -> None:
        images = open_images(ImageChoice(IMAGES), onnx_io.inputs(onnx_io.load(model)), LITE0)
        self.feeds: Iterator[Tensors] = (batch.feeds for batch in images.batches(1))

    def get_next(self) -> Tensors | None:
        return next(self.feeds, None)


def run_uncached(*arguments: object) -> float:
    """Run a command with an empty cache, and return its duration in seconds."""
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        run_python(*arguments, cache=cache)
        return time.perf_counter() - started


def run_python(*arguments: object, cache: str | None = None) -> str:
    """Run Python, and return what it prints."""
    added = {} if cache is None else {"QCONVERT_CACHE_DIR": cache}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **added},
    )
    if process.returncode:
        raise SystemExit(process.stderr)
    return process.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
