"""Compare an ONNX file with FP32: size, accuracy on labelled images, speed on the CPU provider."""

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
Runner = Callable[[Array], Array]  # images to logits


@dataclass(frozen=True)
class Reference:
    """The FP32 model, the evaluation images, their labels, and the FP32 logits."""

    model: Path
    images: Array
    labels: Array
    logits: Array


@dataclass(frozen=True)
class Score:
    """Metrics of one file against FP32; shares in percent, SQNR in dB."""

    megabytes: float
    top1: float
    agrees: float
    sqnr: float
    kl: float


def score_model(path: Path, reference: Reference) -> Score:
    """Run one file on the evaluation images and compare it with FP32 and the labels."""
    return score_logits(path, run_model(path, reference.images), reference)


def score_logits(path: Path, logits: Array, reference: Reference) -> Score:
    """Compare the logits of a file with those of FP32 and with the labels."""
    expected = reference.logits
    classes = logits.argmax(1)
    return Score(
        megabytes=sum(file.stat().st_size for file in onnx_io.model_files(path)) / 1e6,
        top1=100 * float((classes == reference.labels).mean()),
        agrees=100 * float((classes == expected.argmax(1)).mean()),
        sqnr=sqnr_db(expected, logits),
        kl=float(divergences(expected, logits).mean()),
    )


def sqnr_db(expected: Array, logits: Array) -> float:
    """Return the signal to quantization noise ratio over all logits."""
    noise = float(np.square(expected - logits).sum())
    return float(10 * np.log10(np.square(expected).sum() / noise)) if noise else float("inf")


def divergences(expected: Array, logits: Array) -> Array:
    """Return for each image the KL divergence of the class probabilities from those of FP32."""
    fp32, int8 = log_softmax(expected), log_softmax(logits)
    divergence: Array = (np.exp(fp32) * (fp32 - int8)).sum(1)
    return divergence


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logarithms


def run_model(path: Path, images: Array) -> Array:
    """Return the logits of all images.

    A graph in TensorRT's scheme runs node by node: ONNX Runtime's integer kernels overflow on it.
    """
    return run_chunks(open_onnx(path, unfused=has_float_biases(onnx_io.load(path))), images)


def run_chunks(run: Runner, images: Array) -> Array:
    """Return the logits of all images, a few at a time."""
    chunks = (images[at : at + CHUNK] for at in range(0, len(images), CHUNK))
    return np.concatenate([run(chunk) for chunk in chunks]).astype(np.float64)


def speedups(
    runners: Mapping[str, Runner], base: str, images: Array, rounds: int
) -> dict[str, Array]:
    """Return the speedup of each runner over `base`, for each batch size."""
    batch_times = [best_seconds(runners, images[:batch], rounds) for batch in BATCHES]
    return {
        name: np.array([times[base] / times[name] for times in batch_times]) for name in runners
    }


def best_seconds(runners: Mapping[str, Runner], images: Array, rounds: int) -> dict[str, float]:
    """Return the shortest duration of a call of each runner; they take turns.

    Other work on the machine makes calls longer, never shorter.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            run(images)  # warm up: the others have evicted this one from the CPU caches
            stop = time.perf_counter() + TURN_SECONDS
            while (started := time.perf_counter()) < stop:
                run(images)
                times[name].append(time.perf_counter() - started)
    return {name: min(durations) for name, durations in times.items()}


def open_onnx(
    path: Path, *, unfused: bool = False, exact: bool = False, threads: int = THREADS
) -> Runner:
    """Open a file with ONNX Runtime as a user would.

    `unfused` runs Q/DQ nodes one by one. `exact` keeps x86 without VNNI from adding products of
    bytes in saturating 16 bits.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", str(int(unfused)))
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
