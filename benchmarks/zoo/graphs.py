"""ONNX graphs in the style of other exporters and old opsets, written node by node."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from benchmarks.zoo.entry import Entry, Input

Array = NDArray[np.float32]
SIDE, CLASSES = 32, 10
IMAGE = Input("image", (1, 3, SIDE, SIDE))
PHOTO = Input("image", (1, SIDE, SIDE, 3))
FRAMES = Input("frames", (1, 12, 32))


def weights(*shape: int, seed: int) -> Array:
    """Return random weights that preserve the scale of activations."""
    spread = np.sqrt(2 / max(1, np.prod(shape[1:])))
    return (spread * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def save_model(text: str, path: Path, **stored: NDArray[np.generic]) -> Path:
    """Write the model in ONNX text with these initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in stored.items()
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


# The same small network in each opset: Clip, Pad, Resize and the reductions had attributes that
# later became inputs.
TEXT = """<ir_version: {ir}, opset_import: ["": {opset}]>
opset{opset} (float[batch, 3, 32, 32] image) => (float[batch, 10] scores) {{
    {pad}
    conv = Conv <kernel_shape = [3, 3], strides = [2, 2]> (padded, w1)
    normal = BatchNormalization (conv, scale, shift, mean, variance)
    {clip}
    small = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (clipped)
    {grow}
    sum = Add (grown, clipped)
    deep = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (sum, w2)
    active = LeakyRelu <alpha = 0.1> (deep)
    {mean}
    {squeeze}
    scores = Gemm <transB = 1> (flat, w3, b3)
}}"""


def write_opset(opset: int) -> Callable[[Path], Path]:
    """Return a function that writes the network in an opset."""
    words = {
        "pad": "padded = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (image)",
        "clip": "clipped = Clip <min = 0.0, max = 6.0> (normal)",
        "grow": 'grown = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (small)',
        "mean": "pooled = ReduceMean <axes = [2, 3], keepdims = 1> (active)",
        "squeeze": "flat = Squeeze <axes = [2, 3]> (pooled)",
    }
    if opset >= 9:
        words["grow"] = 'grown = Upsample <mode = "nearest"> (small, scales)'
    if opset >= 10:
        words["grow"] = 'grown = Resize <mode = "nearest"> (small, scales)'
    if opset >= 11:
        words["pad"] = "padded = Pad (image, pads)"
        words["clip"] = "clipped = Clip (normal, zero, six)"
        words["grow"] = 'grown = Resize <mode = "nearest"> (small, nothing, scales)'
    if opset >= 13:
        words["squeeze"] = "flat = Squeeze (pooled, axes)"
    if opset >= 18:
        words["mean"] = "pooled = ReduceMean <keepdims = 1> (active, axes)"
    text = TEXT.format(
        opset=opset, ir=min(10, 3 + max(0, opset - 6)) if opset < 21 else 10, **words
    )
    stored: dict[str, NDArray[np.generic]] = {
        "w1": weights(16, 3, 3, 3, seed=1),
        "w2": weights(32, 16, 3, 3, seed=2),
        "w3": weights(10, 32, seed=3),
        "b3": weights(10, seed=4),
        "scale": np.linspace(0.5, 1.5, 16, dtype=np.float32),
        "shift": np.linspace(-0.5, 0.5, 16, dtype=np.float32),
        "mean": np.zeros(16, np.float32),
        "variance": np.ones(16, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "zero": np.zeros((), np.float32),
        "six": np.full((), 6, np.float32),
        "nothing": np.zeros(0, np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    used = {
        name: array for name, array in stored.items() if f"{name})" in text or f"{name}," in text
    }
    return lambda place: save_model(text, place, **used)


# TensorFlow's converter: images with channels last, a Transpose around every convolution.
TENSORFLOW = """<ir_version: 8, opset_import: ["": 15]>
tensorflow (float[batch, 32, 32, 3] image) => (float[batch, 10] scores) {
    first = Transpose <perm = [0, 3, 1, 2]> (image)
    conv = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> (first, w1)
    last = Transpose <perm = [0, 2, 3, 1]> (conv)
    biased = Add (last, b1)
    six = Clip (biased, zero, top)
    second = Transpose <perm = [0, 3, 1, 2]> (six)
    depth = Conv <kernel_shape = [3, 3], group = 16, pads = [1, 1, 1, 1]> (second, w2)
    back = Transpose <perm = [0, 2, 3, 1]> (depth)
    scaled = Mul (back, s2)
    moved = Add (scaled, b2)
    sum = Add (moved, six)
    mean = ReduceMean <axes = [1, 2], keepdims = 0> (sum)
    product = MatMul (mean, w3)
    logits = Add (product, b3)
    scores = Softmax <axis = -1> (logits)
}"""

# Paddle's converter: a bias is a Reshape of a vector and an Add, hard-swish is spelled out.
PADDLE = """<ir_version: 7, opset_import: ["": 11]>
paddle (float[batch, 3, height, width] image) => (float[batch, 10] scores) {
    conv = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (image, w1)
    wide = Reshape (b1, shape)
    biased = Add (conv, wide)
    three = Add (biased, plus)
    six = Clip (three, zero, top)
    product = Mul (biased, six)
    swish = Div (product, divisor)
    pool = GlobalAveragePool (swish)
    less = Conv <kernel_shape = [1, 1]> (pool, w2)
    relu = Relu (less)
    more = Conv <kernel_shape = [1, 1]> (relu, w3)
    gate = HardSigmoid <alpha = 0.2, beta = 0.5> (more)
    weighed = Mul (swish, gate)
    deep = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (weighed, w4)
    size = Shape (deep)
    rows = Slice (size, at0, at1)
    target = Concat <axis = 0> (rows, rest)
    mean = GlobalAveragePool (deep)
    flat = Reshape (mean, target)
    scores = MatMul (flat, w5)
}"""

CHOICE = """<ir_version: 8, opset_import: ["": 17]>
choice (float[batch, 3, 32, 32] image) => (float[batch, 10] scores) {
    conv = Conv <kernel_shape = [3, 3], strides = [2, 2]> (image, w1)
    relu = Relu (conv)
    level = ReduceMean <keepdims = 0> (relu)
    bright = Greater (level, zero)
    chosen = If (bright) <
        then_branch = yes () => (float[batch, 16, 15, 15] a) { a = Mul (relu, two) },
        else_branch = no () => (float[batch, 16, 15, 15] b) { b = Add (relu, two) }
    >
    deep = Conv <kernel_shape = [3, 3], strides = [2, 2]> (chosen, w2)
    active = Relu (deep)
    pool = GlobalAveragePool (active)
    flat = Flatten (pool)
    scores = Gemm <transB = 1> (flat, w3, b3)
}"""

LOOP = """<ir_version: 8, opset_import: ["": 17]>
loop (float[batch, 12, 32] frames) => (float[batch, 12, 10] scores) {
    start = MatMul (frames, w1)
    refined = Loop (three, yes, start) <
        body = step (int64 i, bool go, float[batch, 12, 32] state)
            => (bool on, float[batch, 12, 32] next) {
            on = Identity (go)
            product = MatMul (state, w2)
            next = Tanh (product)
        }
    >
    scores = MatMul (refined, w3)
}"""

RECURRENT = """<ir_version: 8, opset_import: ["": 17]>
recurrent (float[batch, 12, 32] frames) => (float[batch, 10] scores) {
    inner = MatMul (frames, w0)
    active = Relu (inner)
    steps = Transpose <perm = [1, 0, 2]> (active)
    all, last = LSTM <hidden_size = 24> (steps, wl, rl)
    state = Squeeze (last, axes)
    scores = MatMul (state, w1)
}"""

TWO_INPUTS = """<ir_version: 8, opset_import: ["": 17]>
pair (float[batch, 3, 32, 32] left, float[batch, 3, 32, 32] right)
    => (float[batch, 1] likeness, float[batch, 16] code) {
    a = Conv <kernel_shape = [3, 3], strides = [4, 4]> (left, w1)
    b = Conv <kernel_shape = [3, 3], strides = [4, 4]> (right, w1)
    ra = Relu (a)
    rb = Relu (b)
    pa = GlobalAveragePool (ra)
    pb = GlobalAveragePool (rb)
    code = Flatten (pa)
    other = Flatten (pb)
    both = Concat <axis = 1> (code, other)
    likeness = MatMul (both, w2)
}"""

SCALARS: dict[str, NDArray[np.generic]] = {
    "zero": np.zeros((), np.float32),
    "top": np.full((), 6, np.float32),
    "two": np.full((), 2, np.float32),
}


def tensorflow(place: Path) -> Path:
    stored = {
        "w1": weights(16, 3, 3, 3, seed=1),
        "b1": weights(16, seed=2),
        "w2": weights(16, 1, 3, 3, seed=3),
        "s2": np.linspace(0.5, 1.5, 16, dtype=np.float32),
        "b2": weights(16, seed=4),
        "w3": weights(16, CLASSES, seed=5),
        "b3": weights(CLASSES, seed=6),
    }
    return save_model(TENSORFLOW, place, **stored, zero=SCALARS["zero"], top=SCALARS["top"])


def paddle(place: Path) -> Path:
    stored: dict[str, NDArray[np.generic]] = {
        "w1": weights(16, 3, 3, 3, seed=1),
        "b1": weights(16, seed=2),
        "shape": np.array([1, -1, 1, 1], np.int64),
        "plus": np.full((1,), 3, np.float32),
        "divisor": np.full((1,), 6, np.float32),
        "w2": weights(8, 16, 1, 1, seed=3),
        "w3": weights(16, 8, 1, 1, seed=4),
        "w4": weights(32, 16, 3, 3, seed=5),
        "at0": np.array([0], np.int64),
        "at1": np.array([1], np.int64),
        "rest": np.array([32], np.int64),
        "w5": weights(32, CLASSES, seed=6),
    }
    return save_model(PADDLE, place, **stored, zero=SCALARS["zero"], top=SCALARS["top"])


def choice(place: Path) -> Path:
    convs = {"w1": weights(16, 3, 3, 3, seed=1), "w2": weights(32, 16, 3, 3, seed=2)}
    head = {"w3": weights(CLASSES, 32, seed=3), "b3": weights(CLASSES, seed=4)}
    return save_model(CHOICE, place, **convs, **head, zero=SCALARS["zero"], two=SCALARS["two"])


def loop(place: Path) -> Path:
    names = {"w1": weights(32, 32, seed=1), "w2": weights(32, 32, seed=2)}
    counts = {"three": np.array(3, np.int64), "yes": np.array(True)}
    return save_model(LOOP, place, **names, **counts, w3=weights(32, CLASSES, seed=3))


def recurrent(place: Path) -> Path:
    return save_model(
        RECURRENT,
        place,
        w0=weights(32, 32, seed=1),
        wl=weights(1, 96, 32, seed=2),
        rl=weights(1, 96, 24, seed=3),
        axes=np.array([0], np.int64),
        w1=weights(24, CLASSES, seed=4),
    )


def pair(place: Path) -> Path:
    return save_model(TWO_INPUTS, place, w1=weights(16, 3, 3, 3, seed=1), w2=weights(32, 1, seed=2))


def quantized_by_onnxruntime(place: Path) -> Path:
    """Write a network quantized by ONNX Runtime on random images."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rows = IMAGE.rows(8, 5)
            self.feeds = iter([{"image": row[np.newaxis]} for row in rows])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    plain = write_opset(17)(place.with_name("float.onnx"))
    quantization.quantize_static(plain, place, Reader(), per_channel=True)
    return place


OPSETS = (7, 9, 10, 11, 13, 15, 18, 20, 21, 23, 24)
LEFT, RIGHT = Input("left", (1, 3, SIDE, SIDE)), Input("right", (1, 3, SIDE, SIDE), scale=0.5)


def entries() -> dict[str, Entry]:
    """Return all of them by name."""
    opsets = {f"opset-{opset}": Entry("graphs", write_opset(opset), (IMAGE,)) for opset in OPSETS}
    return opsets | {
        "tensorflow-nhwc": Entry("graphs", tensorflow, (PHOTO,)),
        "paddle-dynamic": Entry("graphs", paddle, (IMAGE,)),
        "if": Entry("graphs", choice, (IMAGE,)),
        "loop": Entry("graphs", loop, (FRAMES,)),
        "lstm": Entry("graphs", recurrent, (FRAMES,)),
        "two-inputs": Entry("graphs", pair, (LEFT, RIGHT)),
        "qdq-of-another-tool": Entry("graphs", quantized_by_onnxruntime, (IMAGE,)),
    }
