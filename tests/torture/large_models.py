"""Networks with many nodes or many bytes of weights, folders of many or large images."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CHANNELS, SIDE = 8, 16
WIDTH = 50


class Net:
    """A network that grows node by node; its weights preserve the scale of activations."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def conv(self, source: str, inputs: int, outputs: int, kernel: int, gain: float = 1.0) -> str:
        """Add a convolution and return the name of its output."""
        shape = (outputs, inputs, kernel, kernel)
        spread = gain * (2 / (inputs * kernel**2)) ** 0.5
        weight = (spread * self._random.standard_normal(shape)).astype(np.float32)
        name = f"w{len(self.nodes)}"
        self.stored.append(numpy_helper.from_array(weight, name))
        return self.node("Conv", source, name, pads=[kernel // 2] * 4)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def save(self, last: str, path: Path) -> Path:
        """Add scores behind the last tensor and write the model."""
        pooled = self.node("GlobalAveragePool", self.conv(last, CHANNELS, 10, 1))
        self.nodes.append(helper.make_node("Flatten", [pooled], ["scores"], name="scores"))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])
        graph = helper.make_graph(self.nodes, "net", [image], [scores], self.stored)
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
        return path


def chain_model(nodes: int, path: Path) -> Path:
    """Write a chain of convolutions."""
    net, last, inputs = Net(), "image", 3
    while len(net.nodes) < nodes - 3:
        last, inputs = net.node("Relu", net.conv(last, inputs, CHANNELS, 3)), CHANNELS
    return net.save(last, path)


def parallel_model(nodes: int, path: Path) -> Path:
    """Write blocks of many convolutions side by side."""
    net, last, inputs = Net(), "image", 3
    while len(net.nodes) < nodes - 3:
        arms = [net.node("Relu", net.conv(last, inputs, 4, 1)) for _ in range(WIDTH)]
        last, inputs = net.conv(net.node("Concat", *arms, axis=1), 4 * WIDTH, CHANNELS, 1), CHANNELS
    return net.save(last, path)


def residual_model(nodes: int, path: Path) -> Path:
    """Write a chain of convolutions, each with a residual connection."""
    net = Net()
    last = net.conv("image", 3, CHANNELS, 3)
    while len(net.nodes) < nodes - 3:
        last = net.node("Add", last, net.node("Relu", net.conv(last, CHANNELS, CHANNELS, 3, 0.1)))
    return net.save(last, path)


SHAPES: dict[str, Callable[[int, Path], Path]] = {
    "deep": chain_model,
    "wide": parallel_model,
    "residual": residual_model,
}


def heavy_model(width: int, layers: int, path: Path) -> Path:
    """Write layers of `width` x `width` weights, stored in a file beside the model."""
    data, random = path.with_suffix(".data"), np.random.default_rng(0)
    sizes = [3 * SIDE * SIDE, *[width] * layers, 10]
    nodes = [helper.make_node("Flatten", ["image"], ["read0"])]
    stored = []
    with data.open("wb") as file:
        for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            weight = random.standard_normal((inputs, outputs), dtype=np.float32)
            weight *= np.float32((2 / inputs) ** 0.5)
            tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT)
            tensor.dims.extend(weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", str(file.tell()))):
                tensor.external_data.add(key=key, value=value)
            tensor.external_data.add(key="length", value=str(weight.nbytes))
            file.write(weight.tobytes())
            stored.append(tensor)
            output = "scores" if number == layers else f"made{number}"
            nodes.append(helper.make_node("Gemm", [f"read{number}", tensor.name], [output]))
            if number < layers:
                nodes.append(helper.make_node("Relu", [output], [f"read{number + 1}"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "heavy", [image], [scores], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def link_images(source: Path, count: int, folder: Path) -> Path:
    """Make a folder of `count` images, which are hard links to a few."""
    folder.mkdir()
    files = sorted(source.iterdir())
    for number in range(count):
        file = files[number % len(files)]
        os.link(file, folder / f"{number:06d}{file.suffix}")
    return folder


def draw_large_images(side: int, folder: Path) -> Path:
    """Write two images of `side` x `side`, a JPEG and a PNG, each under eight names."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side))
    image.save(folder / "00.jpg", quality=90)
    image.save(folder / "01.png", compress_level=1)
    for number in range(2, 16):
        file = folder / ("00.jpg", "01.png")[number % 2]
        os.link(file, folder / f"{number:02d}{file.suffix}")
    return folder
