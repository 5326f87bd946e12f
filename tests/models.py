"""Small models that tests share, written as ONNX text plus weights."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.graph.passes import infer_shapes

TINY = """
<ir_version: 10, opset_import: ["": 20]>
tiny (float[batch, 3, 8, 8] image) => (float[batch, 5] scores) {
    conv = Conv <pads: ints = [1, 1, 1, 1]> (image, conv_weight, conv_bias)
    relu = Relu (conv)
    pooled = GlobalAveragePool (relu)
    flat = Flatten (pooled)
    scores = Gemm <transB: int = 1> (flat, head_weight, head_bias)
}
"""


def from_text(text: str, **weights: NDArray[np.generic]) -> ir.Model:
    """Parse ONNX text and add the named initializers."""
    model = ir.from_onnx_text(text)
    graph = model.graph
    for name, array in weights.items():
        initializer = next(
            value
            for node in graph.all_nodes()
            for value in node.inputs
            if value is not None and value.name == name
        )
        initializer.const_value = ir.tensor(array, name=name)
        initializer.shape, initializer.dtype = (
            ir.Shape(array.shape),
            ir.DataType.from_numpy(array.dtype),
        )
        graph.register_initializer(initializer)
    return model


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return random weights, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tiny() -> ir.Model:
    """Return the smallest classifier with a Conv and a Gemm."""
    return from_text(
        TINY,
        conv_weight=floats(4, 3, 3, 3),
        conv_bias=floats(4, seed=1),
        head_weight=floats(5, 4, seed=2),
        head_bias=floats(5, seed=3),
    )


def ops(model: ir.Model) -> list[str]:
    """Return the operators in order."""
    return [node.op_type for node in model.graph]


MIXED = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 16, 16] image) => (float[N, 24] scores) {
    stem = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (image, w1, b1)
    a = Clip (stem, zero, six)
    wide = Conv <pads: ints = [1, 1, 1, 1], group: int = 16> (a, w2, b2)
    b = Relu (wide)
    narrow = Conv (b, w3, b3)
    sum = Add (narrow, a)
    gate = Sigmoid (sum)
    gated = Mul (sum, gate)
    side = Conv (gated, w4)
    all = Concat <axis: int = 1> (gated, side)
    small = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (all)
    last = Conv (small, w5, b5)
    c = Relu (last)
    mean = GlobalAveragePool (c)
    flat = Flatten (mean)
    scores = Gemm <transB: int = 1> (flat, w6, b6)
}
"""
MIXED_SHAPES = {
    "w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (16, 16, 1, 1),
    "b3": (16,), "w4": (16, 16, 1, 1), "w5": (32, 32, 1, 1), "b5": (32,), "w6": (24, 32),
    "b6": (24,),
}  # fmt: skip


def mixed(**changed: NDArray[np.generic]) -> ir.Model:
    """Return a network with every kind of operator that is quantized."""
    weights = {
        name: floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
        for seed, (name, shape) in enumerate(MIXED_SHAPES.items())
    }
    limits = {"zero": np.array(0.0, np.float32), "six": np.array(6.0, np.float32)}
    model = infer_shapes(from_text(MIXED, **{**weights, **limits, **changed}))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


PRODUCTS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 16, 16] image) => (float[N, 64] scores) {
    flat = Flatten (image)
    hidden = Gemm <transB: int = 1> (flat, w1, b1)
    active = Relu (hidden)
    scores = Gemm (active, w2)
}
"""


def products() -> ir.Model:
    """Return a network of matrix products, with images of the size that `mixed` takes."""
    weights = {"w1": floats(64, 768), "b1": floats(64, seed=1), "w2": floats(64, 64, seed=2)}
    scaled = {name: array / np.float32(np.sqrt(array.shape[-1])) for name, array in weights.items()}
    model = infer_shapes(from_text(PRODUCTS, **scaled))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


FACTORY = '''
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )


def ready():
    return build(), torch.zeros(1, 3, 8, 8)


class Generator(nn.Module):
    """Two inputs, two named outputs, ConvTranspose with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4 * 9)
        self.up = nn.ConvTranspose2d(4, 6, 4, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.ConvTranspose2d(6, 3, 4, 2, 1)

    def forward(self, noise, label):
        h = self.fc(torch.cat([noise, label], 1)).view(-1, 4, 3, 3)
        h = torch.relu(self.norm(self.up(h)))
        return {"image": torch.tanh(self.out(h)), "features": h}


def generator():
    return Generator()


class Noisy(nn.Module):
    """Its evaluation mode draws random numbers, so no two runs agree."""

    def forward(self, x):
        return x.flatten(1) + torch.rand_like(x.flatten(1))


def noisy():
    return Noisy(), torch.zeros(1, 3, 4)


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def branching():
    return Branching(), torch.zeros(1, 4)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 12).softmax(1)


def fixed_batch():
    return FixedBatch(), torch.zeros(2, 12)


class Chatty(nn.Module):
    def forward(self, x):
        print("forward!")
        return x.relu()


def chatty():
    print("building")
    return Chatty(), torch.zeros(1, 4)


def raising():
    raise ValueError("no such checkpoint")


def leaving():
    raise SystemExit("bye")


def number():
    return 3


not_a_function = 3
'''


def write_factory(folder: Path, name: str = "nets") -> None:
    """Write a module of factories into the folder a command runs in."""
    (folder / f"{name}.py").write_text(FACTORY)
