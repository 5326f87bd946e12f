"""The valid files from which every case starts; they are the same each time."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from qconvert.cli import main
from qconvert.cli.error_boundary import run_guarded
from qconvert.core import onnx_io
from tests.models import floats, from_text, mixed, tiny

BUILD = (
    "--backend", "cpu", "--precision", "fp32,int8", "--effort", "quick", "--seconds", "0.01",
    "--batch-sizes", "1",
)  # fmt: skip
# A file that links point to and no command may write.
SECRET = "secret.txt"
CLASSES = tuple(f"kind {number}" for number in range(24))

BRANCHED = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 4] x) => (float[N, 4] y, float[N, 2] z) {
    total = ReduceSum <keepdims: int = 0> (x)
    yes = Greater (total, zero)
    chosen = If (yes) <
        then_branch = yes_graph () => (float[N, 4] a) { a = Relu (x) },
        else_branch = no_graph () => (float[N, 4] b) { b = Neg (x) }
    >
    y = Softmax (chosen)
    z = MatMul (y, w)
}
"""
SHAPED = """
<ir_version: 8, opset_import: ["": 13, "own": 1]>
net (float[N, 3, 8, 8] image, int64[N] pick) => (float[N, 4] out) {
    shape = Shape (image)
    some = Gather (shape, first)
    both = Concat <axis: int = 0> (some, rest)
    flat = Reshape (image, both)
    act = own.Gelu (flat)
    mul = MatMul (act, w)
    rows = Gather <axis: int = 0> (mul, pick)
    out = Clip (rows, low, high)
}
<domain: "own", opset_import: ["": 13]>
Gelu (x) => (y) { s = Sigmoid (x)  y = Mul (x, s) }
"""


def make(root: Path) -> None:
    """Write all seeds: models, images, arrays, labels, settings, a run and its cache."""
    for name, model in _models().items():
        onnx_io.save(model, root / f"models/{name}.onnx")
    (root / "models/old.onnx").write_bytes(_old().SerializeToString())
    ir.save(tiny(), root / "models/apart.onnx", external_data="weights.bin", size_threshold_bytes=0)
    shutil.copy(root / "models/mixed.onnx", root / "net.onnx")
    (root / SECRET).write_text("secret\n")
    _draw(root / "images")
    _draw(root / "val")
    files = sorted(path.name for path in (root / "val").iterdir())
    rows = [f"{name},kind {number % 24}" for number, name in enumerate(files)]
    (root / "val/labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    (root / "val/classes.txt").write_text("\n".join(CLASSES) + "\n")
    _arrays(root)
    with _inside(root):
        _run("init", "net.onnx")
        text = (root / "qconvert.toml").read_text()
        (root / "settings.toml").write_text(text)
        (root / "qconvert.toml").unlink()
        _run("build", "net.onnx", "--images", "images", "--eval", "val", *BUILD, "-o", "run")
        shutil.copy(root / "run/calibration/calibration.npz", root / "calibration.npz")
        for name in ("plan.json", "plan.learned.npz"):
            shutil.copy(root / "run/engines/cpu-int8" / name, root / name)
        _run("quantize", "models/tiny.onnx", "--images", "images", "--effort", "none", "-o",
             "models/quantized.onnx")  # fmt: skip
        _run("quantize", "net.onnx", "--precision", "fp16", "-o", "models/half.onnx")


def _models() -> dict[str, ir.Model]:
    zero = np.array(0.0, np.float32)
    branched = from_text(BRANCHED, zero=zero, w=floats(4, 2))
    shaped = from_text(
        SHAPED,
        first=np.array([0], np.int64), rest=np.array([-1], np.int64), w=floats(192, 4),
        low=np.array(-1.0, np.float32), high=np.array(6.0, np.float32),
    )  # fmt: skip
    return {"tiny": tiny(), "mixed": mixed(), "branched": branched, "shaped": shaped}


def _old() -> onnx.ModelProto:
    """Return a model in the style of 2018: opset 7, weights listed as inputs."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Reshape", ["p", "shape"], ["y"]),
    ]
    ones = np.ones(4, np.float32)
    weights = {"w": floats(4, 3, 3, 3), "s": ones, "b": ones, "m": ones, "v": ones}
    stored = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    stored.append(numpy_helper.from_array(np.array([-1, 4], np.int64), "shape"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])]
    graph = helper.make_graph(nodes, "old", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)


def _draw(folder: Path) -> None:
    """Draw images of every supported format and mode."""
    folder.mkdir(parents=True)
    save: dict[str, dict[str, Any]] = {
        "00.jpg": {}, "01.png": {}, "02.gif": {}, "03.webp": {}, "04.tiff": {"compression": "lzma"},
        "05.bmp": {}, "06.jpg": {"progressive": True}, "07.tiff": {"compression": "jpeg"},
    }  # fmt: skip
    for number, (name, options) in enumerate(save.items()):
        _noise(number).save(folder / name, **options)
    _noise(8).convert("CMYK").save(folder / "08.jpg")
    _noise(9).convert("P").save(folder / "09.png", transparency=3)
    wide = np.random.default_rng(10).integers(0, 2**16, (20, 24)).astype(np.uint16)
    Image.fromarray(wide).save(folder / "10.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    _noise(11).save(folder / "11.jpg", exif=turned)


def _noise(seed: int) -> Image.Image:
    pixels: NDArray[np.int64] = np.random.default_rng(seed).integers(0, 60 + 15 * seed, (20, 24, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _arrays(root: Path) -> None:
    images = floats(12, 3, 16, 16)
    np.savez(root / "stored.npz", image=images, labels=np.arange(12) % 24)
    np.savez_compressed(root / "packed.npz", image=images, labels=np.arange(12) % 24)
    np.save(root / "one.npy", images)


def _run(*args: str) -> None:
    code = run_guarded(main, args)
    if code:
        raise AssertionError(f"the seeds cannot be made: {' '.join(args)} ended with {code}")


@contextmanager
def _inside(root: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(root)
    os.environ["QCONVERT_CACHE_DIR"] = str(root / "store")
    try:
        yield
    finally:
        os.chdir(before)
    # Cases run in other folders: remove the path of this one.
    for path in (root / "run/run.toml", root / "run/report.json"):
        path.write_text(path.read_text().replace(json.dumps(str(root))[1:-1], "."))
