"""One ONNX file against FP32: size, accuracy on labelled images, and speed on the CPU provider."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qconvert.backends.ort import has_float_biases
from qconvert.core import onnx_io

THREADS, BATCHES = 2, (1, 8)
CHUNK = 10
TURN_SECONDS = 0.1
Array = NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """FP32: its file, the evaluation images, their labels, and its answers."""

    model: Path
    images: Array
    labels: Array
    logits: Array


@dataclass(frozen=True)
class Score:
    """One file against FP32; shares in percent, SQNR in dB."""

    megabytes: float
    top1: float
    agrees: float
    sqnr: float
    kl: float


def score(path: Path, reference: Reference) -> Score:
    """Run one file over the evaluation images and hold it against FP32 and the labels."""
    return judged(path, answers(path, reference.images), reference)


def judged(path: Path, found: Array, reference: Reference) -> Score:
    """Hold the answers of a file against FP32 and the labels."""
    wanted = reference.logits
    classes = found.argmax(1)
    return Score(
        megabytes=sum(file.stat().st_size for file in onnx_io.model_files(path)) / 1e6,
        top1=100 * float((classes == reference.labels).mean()),
        agrees=100 * float((classes == wanted.argmax(1)).mean()),
        sqnr=decibel(wanted, found),
        kl=float(divergences(wanted, found).mean()),
    )


def decibel(wanted: Array, found: Array) -> float:
    """Return the signal to quantization noise ratio over all logits."""
    noise = float(np.square(wanted - found).sum())
    return float(10 * np.log10(np.square(wanted).sum() / noise)) if noise else float("inf")


def divergences(wanted: Array, found: Array) -> Array:
    """Return for each image the KL divergence of the classes' probabilities from those of FP32."""
    p, q = log_softmax(wanted), log_softmax(found)
    apart: Array = (np.exp(p) * (p - q)).sum(1)
    return apart


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logarithms


def answers(path: Path, images: Array) -> Array:
    """Return the logits of all images.

    What is quantized as TensorRT wants it is computed as the graph says: ONNX Runtime's own integer
    kernels overflow on it.
    """
    session = opened(path, literal=has_float_biases(onnx_io.load(path)))
    name = session.get_inputs()[0].name
    chunks = (images[at : at + CHUNK] for at in range(0, len(images), CHUNK))
    found = [session.run(None, {name: chunk})[0] for chunk in chunks]
    return np.concatenate(found).astype(np.float64)


def gains(models: Mapping[str, Path], base: str, images: Array, rounds: int) -> dict[str, Array]:
    """Return how many times as fast as `base` each file is, for each batch size."""
    took = [seconds(models, images[:batch], rounds) for batch in BATCHES]
    return {name: np.array([each[base] / each[name] for each in took]) for name in models}


def seconds(models: Mapping[str, Path], images: Array, rounds: int) -> dict[str, float]:
    """Return each file's median seconds a call; the files take turns."""
    calls = {name: call(path, images) for name, path in models.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            run()  # brings back into the caches what the others pushed out
            stop = time.perf_counter() + TURN_SECONDS
            while (started := time.perf_counter()) < stop:
                run()
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in found.items()}


def call(path: Path, images: Array) -> Callable[[], object]:
    session = opened(path)
    feeds = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, feeds)


def opened(path: Path, *, literal: bool = False) -> onnxruntime.InferenceSession:
    """Open a file as a user would; where `literal`, Q/DQ nodes are run one by one as they are."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", str(int(literal)))
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
