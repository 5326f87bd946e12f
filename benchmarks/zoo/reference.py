"""The original file in ONNX Runtime and in TensorRT for RTX, as references for qconvert."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.zoo.entry import Arrays, Entry

LEVELS = 255


def open_session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_error(model: Path, feeds: Arrays) -> str:
    """Return the error of ONNX Runtime on the file, or an empty string."""
    try:
        run_model(model, feeds)
    except Exception as error:  # any error of the runtime is the result
        return str(error)[:300]
    return ""


def run_model(model: Path, feeds: Arrays) -> list[NDArray[Any]]:
    """Run a file on all rows at once, or one by one where its batch is fixed."""
    session = open_session(model)
    first = session.get_inputs()[0].shape[:1]
    count = len(next(iter(feeds.values())))
    size = first[0] if first and isinstance(first[0], int) else count
    parts = []
    for start in range(0, count, size):
        part = {
            spec.name: feeds[spec.name][start : start + size].reshape(
                feeds[spec.name].shape if not spec.shape else (size, *feeds[spec.name].shape[1:])
            )
            for spec in session.get_inputs()
        }
        parts.append(session.run(None, part))
    return [
        np.concatenate([np.atleast_1d(part[at]) for part in parts]) for at in range(len(parts[0]))
    ]


def quantized_input_db(model: Path, feeds: Arrays) -> float | None:
    """Return the SQNR in dB of the float model on inputs quantized to 8 bits.

    A network with a low SQNR here is chaotic, and no quantizer can be accurate on it.
    """
    quantized = {name: _quantized(array) for name, array in feeds.items()}
    if all(np.array_equal(quantized[name], feeds[name]) for name in feeds):
        return None
    return output_sqnr_db(run_model(model, feeds), run_model(model, quantized))


def output_sqnr_db(
    expected: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]]
) -> float | None:
    """Return the SQNR in dB over all outputs of floating-point numbers."""
    signal = error = 0.0
    for before, after in zip(expected, actual, strict=True):
        if before.dtype.kind == "f" and before.shape == after.shape:
            signal += float(np.square(before.astype(float)).sum())
            error += float(np.square(before.astype(float) - after).sum())
    return 10 * float(np.log10(signal / error)) if signal and error else None


def _quantized(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    step = (high - low) / LEVELS or 1.0
    return (np.round(array / step) * step).astype(array.dtype)


def rtx_build_error(model: Path, entry: Entry) -> str:
    """Return the error of TensorRT for RTX on the original file, or an empty string."""
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        return str(parser.get_error(0).desc())[:300]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shapes = {spec.name: spec.shape for spec in entry.inputs}
    for at in range(network.num_inputs):
        tensor = network.get_input(at)
        if -1 in tuple(tensor.shape):
            shape = shapes[tensor.name]
            fixed = [
                size if size > 0 else fallback
                for size, fallback in zip(tensor.shape, shape, strict=True)
            ]
            profile.set_shape(tensor.name, fixed, fixed, fixed)
    config.add_optimization_profile(profile)
    return "" if builder.build_serialized_network(network, config) else "no engine"
