"""Compare graph cleaning with onnxsim and onnxslim: nodes left, time and error."""

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxsim
import onnxslim

from benchmarks import nets
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import random_inputs
from qconvert.graph.clean import clean_model

ROUNDS = 3
Tool = Callable[[onnx.ModelProto], onnx.ModelProto]


def ours(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.from_proto(model)
    feeds = random_inputs(onnx_io.inputs(graph), 2, seed=0)
    return ir.to_proto(clean_model(graph, 20, (), lambda cleaned: open_cpu(cleaned)(feeds)).model)


TOOLS: dict[str, Tool] = {
    "qconvert": ours,
    "onnxsim, checked": lambda model: onnxsim.simplify(
        model, check_n=1, test_input_shapes={model.graph.input[0].name: list(nets.IMAGE)}
    )[0],
    "onnxslim, unchecked": onnxslim.slim,
}


def main() -> None:
    print(
        "Cleaning a graph that torch exported without its own optimizer; median of 3, interleaved"
    )
    print(f"{'network':28}{'tool':22}{'nodes':>12}{'seconds':>9}{'ratio':>7}{'error':>9}")
    for name, module in (
        ("EfficientNet-Lite0", nets.lite0()),
        ("vit_tiny_patch16_224", nets.timm_net("vit_tiny_patch16_224")),
        ("mobilenetv3_small_100", nets.timm_net("mobilenetv3_small_100")),
        ("swin_tiny_patch4_window7_224", nets.timm_net("swin_tiny_patch4_window7_224")),
    ):
        with tempfile.TemporaryDirectory() as folder:
            compare(name, nets.export(module, Path(folder) / "raw.onnx", optimize=False))


def compare(name: str, model: onnx.ModelProto) -> None:
    seconds: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    results: dict[str, onnx.ModelProto] = {}
    for _ in range(ROUNDS):
        for tool, clean in TOOLS.items():
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            with contextlib.redirect_stdout(io.StringIO()):
                started = time.perf_counter()
                results[tool] = clean(copy)
                seconds[tool].append(time.perf_counter() - started)
    fastest_peer = statistics.median(seconds["onnxsim, checked"])
    for tool, result in results.items():
        took = statistics.median(seconds[tool])
        nodes = f"{len(model.graph.node)} → {len(result.graph.node)}"
        row = f"{name:28}{tool:22}{nodes:>12}{took:9.2f}{took / fastest_peer:7.2f}"
        print(f"{row}{error(model, result):9.0e}")


def error(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Return the largest difference on random images, relative to the largest output."""
    image = np.random.default_rng(1).standard_normal(nets.IMAGE).astype(np.float32)
    expected, actual = (run_model(model, image) for model in (before, after))
    return float(np.abs(expected - actual).max() / np.abs(expected).max())


def run_model(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: image})[0]
    return output


if __name__ == "__main__":
    main()
