"""What others say of a file: ONNX Runtime of the original, and TensorRT for RTX of the original."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.zoo.entry import Arrays, Entry

LEVELS = 255


def session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def opens(model: Path, feeds: Arrays) -> str:
    """Return why ONNX Runtime does not run the file, or nothing."""
    try:
        answers(model, feeds)
    except Exception as error:  # whatever the runtime raises is what is asked for
        return str(error)[:300]
    return ""


def answers(model: Path, feeds: Arrays) -> list[NDArray[Any]]:
    """Run a file on all rows at once, or one by one where its batch is fixed."""
    run = session(model)
    first = run.get_inputs()[0].shape[:1]
    count = len(next(iter(feeds.values())))
    size = first[0] if first and isinstance(first[0], int) else count
    parts = []
    for start in range(0, count, size):
        part = {
            each.name: feeds[each.name][start : start + size].reshape(
                feeds[each.name].shape if not each.shape else (size, *feeds[each.name].shape[1:])
            )
            for each in run.get_inputs()
        }
        parts.append(run.run(None, part))
    return [
        np.concatenate([np.atleast_1d(part[at]) for part in parts]) for at in range(len(parts[0]))
    ]


def rounded_input_db(model: Path, feeds: Arrays) -> float | None:
    """Return how far the answers stray, in dB, when only the inputs are rounded to 8 bits.

    A network that answers far off then is chaotic; no quantizer can do much about it.
    """
    rounded = {name: _rounded(each) for name, each in feeds.items()}
    if all(np.array_equal(rounded[name], feeds[name]) for name in feeds):
        return None
    return apart_db(answers(model, feeds), answers(model, rounded))


def apart_db(wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float | None:
    """Return how far answers are apart, over all that are real numbers."""
    signal = error = 0.0
    for before, after in zip(wanted, got, strict=True):
        if before.dtype.kind == "f" and before.shape == after.shape:
            signal += float(np.square(before.astype(float)).sum())
            error += float(np.square(before.astype(float) - after).sum())
    return 10 * float(np.log10(signal / error)) if signal and error else None


def _rounded(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    step = (high - low) / LEVELS or 1.0
    return (np.round(array / step) * step).astype(array.dtype)


def rtx_builds(model: Path, entry: Entry) -> str:
    """Return why TensorRT for RTX builds no engine of the file as it is, or nothing."""
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        return str(parser.get_error(0).desc())[:300]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shapes = {each.name: each.shape for each in entry.inputs}
    for at in range(network.num_inputs):
        tensor = network.get_input(at)
        if -1 in tuple(tensor.shape):
            shape = shapes[tensor.name]
            fixed = [
                size if size > 0 else given for size, given in zip(tensor.shape, shape, strict=True)
            ]
            profile.set_shape(tensor.name, fixed, fixed, fixed)
    config.add_optimization_profile(profile)
    return "" if builder.build_serialized_network(network, config) else "no engine"
