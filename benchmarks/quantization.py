"""What INT8 costs in accuracy and gains in size and speed, against ONNX Runtime's own quantizer.

EfficientNet-Lite0, calibrated by every tool on the same 200 images, read by the same reader, and
held against FP32 on 300 others. Every graph runs on ONNX Runtime's CPU provider, as a user would
open it: so TensorRT's scheme (S8S8) has its real accuracy here, and a speed that means nothing.

    python -m benchmarks.quantization                             # all tools, and the verdict
    python -m benchmarks.quantization --work DIR                  # keep what was prepared
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
from pathlib import Path

import numpy as np
from onnxruntime import quantization

from benchmarks.against_fp32 import (
    BATCHES,
    THREADS,
    Array,
    Reference,
    Score,
    answers,
    gains,
    score,
)
from benchmarks.calibration import COUNT, EXPORT, IMAGES, LITE0
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.images import ImageChoice, open_images

EVALUATION = IMAGES.parent / "eval"
ROUNDS = 15
MOST_MEGABYTES, LEAST_GAIN = 5.2, 2.2
PREPROCESS = ["--resize", "256", "--interpolation", "bicubic"]
PREPROCESS += ["--mean", str(LITE0.mean[0]), "--std", str(LITE0.std[0])]

S8S8 = {
    "activation_type": quantization.QuantType.QInt8,
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
}
ORT = {"ORT U8S8": {"activation_type": quantization.QuantType.QUInt8}, "ORT S8S8": S8S8}
PEERS = {"cpu": "ORT U8S8", "tensorrt": "ORT S8S8"}
EFFORTS = ("none", "quick", "default", "thorough")
# The least SQNR of the answers that each effort is meant to reach.
SQNR = {
    "cpu": {"default": 24.5, "thorough": 27.0},
    "tensorrt": {"default": 22.0, "thorough": 24.5},
}
LEAST_AGREEMENT = 99.0


def main(given: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where prepared files are kept")
    parser.add_argument("--score", type=Path, nargs="+", default=[], help="only these files")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the clock; 0 for no speed")
    chosen = parser.parse_args(given)
    if not EVALUATION.is_dir():
        print("Quantization: not measured, the images are not here (eval of imagenet-500)")
        return
    with tempfile.TemporaryDirectory() as folder:
        reference = prepared(chosen.work or Path(folder))
        if chosen.score:
            compare(reference, {str(path): path for path in chosen.score}, chosen.rounds)
            return
        scores, speeds = compare(reference, quantized(reference.model), chosen.rounds)
        for backend, peer in PEERS.items():
            for effort in EFFORTS:
                name = f"qconvert {backend} {effort}"
                judge(name, peer, scores, speeds)
                if effort in SQNR[backend]:
                    judge_effort(name, scores, SQNR[backend][effort])


def compare(
    reference: Reference, models: Mapping[str, Path], rounds: int
) -> tuple[dict[str, Score], dict[str, Array]]:
    models = {"FP32": reference.model, **models}
    scores = {name: score(path, reference) for name, path in models.items()}
    speeds = gains(models, "FP32", reference.images, rounds) if rounds else {}
    print(f"\nEfficientNet-Lite0, {len(reference.labels)} images, CPU provider, {THREADS} threads")
    if speeds:
        batches = " and ".join(map(str, BATCHES))
        print(f"speed against FP32 at batch {batches}, median of {rounds} rounds in turns")
    print(f"{'file':24}{'MB':>6}{'top-1':>7}{'agrees':>8}{'SQNR':>7}{'KL':>8}{'speed':>14}")
    for name, found in scores.items():
        row = f"{name[-23:]:24}{found.megabytes:6.2f}{found.top1:7.1f}{found.agrees:8.1f}"
        speed = "".join(f"{gain:6.2f}x" for gain in speeds.get(name, ()))
        print(f"{row}{found.sqnr:7.2f}{found.kl:8.4f}{speed}")
    print("TensorRT (S8S8): accuracy of the same graph on the CPU; its speed is not here")
    return scores, speeds


def judge(name: str, peer: str, scores: Mapping[str, Score], speeds: Mapping[str, Array]) -> None:
    """Say whether one of our files reaches what it is meant to reach."""
    ours, theirs = scores[name], scores[peer]
    claims = {
        f"agrees as much as {peer}": ours.agrees >= theirs.agrees,
        f"SQNR as high as {peer}": ours.sqnr >= theirs.sqnr,
        f"KL as low as {peer}": ours.kl <= theirs.kl,
        f"at most {MOST_MEGABYTES} MB": ours.megabytes <= MOST_MEGABYTES,
    }
    if peer == PEERS["cpu"] and speeds:
        for batch, gain in zip(BATCHES, speeds[name], strict=True):
            claims[f"{LEAST_GAIN}x FP32 at batch {batch}"] = gain >= LEAST_GAIN
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{name}: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}")


def judge_effort(name: str, scores: Mapping[str, Score], least: float) -> None:
    """Say whether learned weights bring the answers as near as they are meant to."""
    ours = scores[name]
    claims = {
        f"at least {least} dB": ours.sqnr >= least,
        f"agrees on {LEAST_AGREEMENT} %": ours.agrees >= LEAST_AGREEMENT,
        "top-1 one image lower at most": ours.top1 >= scores["FP32"].top1 - 100 / 299,
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{name}: {'MISSED ' + ', '.join(missed) if missed else 'as near as it should be'}")


def prepared(work: Path) -> Reference:
    """Export and clean Lite0 and run it once; what is there already is kept."""
    work.mkdir(parents=True, exist_ok=True)
    model, raw, kept = work / "lite0.onnx", work / "raw.onnx", work / "reference.npz"
    if not model.exists():
        child("-c", EXPORT, raw)
        child("-m", "qconvert", "export", raw, "-o", model)
    if not kept.exists():
        images, labels = evaluation(model)
        np.savez(kept, images=images, labels=labels, logits=answers(model, images))
    with np.load(kept) as found:
        return Reference(model, found["images"], found["labels"], found["logits"])


def evaluation(model: Path) -> tuple[Array, Array]:
    found = open_images(ImageChoice(EVALUATION), onnx_io.inputs(onnx_io.load(model)), LITE0)
    pixels = [next(iter(batch.feeds.values())) for batch in found.batches(10)]
    return np.concatenate(pixels), np.array(found.labels)


def quantized(model: Path) -> dict[str, Path]:
    """Return the files of all tools, quantized now and put beside the model."""
    found: dict[str, Path] = {}
    logging.getLogger().setLevel(logging.ERROR)  # its advice is about graphs not cleaned yet
    for name, options in ORT.items():
        found[name] = model.with_name(f"{name.replace(' ', '-')}.onnx")
        quantization.quantize_static(model, found[name], Reader(model), per_channel=True, **options)
    for backend in PEERS:
        for effort in EFFORTS:
            path = model.with_name(f"qconvert-{backend}-{effort}.onnx")
            given = ["--backend", backend, "--effort", effort, "--images", IMAGES, "-o", path]
            command = ["-m", "qconvert", "quantize", model, "--count", COUNT, *PREPROCESS, *given]
            print(f"qconvert {backend} {effort}: {afresh(*command):.0f} s, calibration included")
            found[f"qconvert {backend} {effort}"] = path
    return found


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands ONNX Runtime our images, one at a time as it wants them."""

    def __init__(self, model: Path) -> None:
        images = open_images(ImageChoice(IMAGES), onnx_io.inputs(onnx_io.load(model)), LITE0)
        self.feeds: Iterator[Tensors] = (batch.feeds for batch in images.batches(1))

    def get_next(self) -> Tensors | None:
        return next(self.feeds, None)


def afresh(*arguments: object) -> float:
    """Run a command with an empty store, and return the seconds that it took."""
    with tempfile.TemporaryDirectory() as store:
        started = time.perf_counter()
        child(*arguments, store=store)
        return time.perf_counter() - started


def child(*arguments: object, store: str | None = None) -> None:
    added = {} if store is None else {"QCONVERT_CACHE_DIR": store}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **added},
    )
    if process.returncode:
        raise SystemExit(process.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
