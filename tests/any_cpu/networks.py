"""INT8 files of whole networks, quantized for CPUs, with images to run them on."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

import qconvert
from qconvert.core import onnx_io
from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from tests import zoo
from tests.any_cpu.environment import File
from tests.models import floats, from_text

# How many images calibrate a network, and how many are run.
CALIBRATION, HELD_OUT = 16, 8
GROUPS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[batch, 3, 64, 64] image) => (float[batch, 10] scores) {
    stem = Conv <strides = [2, 2]> (image, stem_weight)
    first = Relu (stem)
    grouped = Conv <group = 4> (first, grouped_weight)
    second = Relu (grouped)
    multiplied = Conv <group = 32> (second, multiplied_weight)
    third = Relu (multiplied)
    pooled = GlobalAveragePool (third)
    flat = Flatten (pooled)
    scores = Gemm <transB = 1> (flat, head_weight)
}
"""


@dataclass(frozen=True)
class Network:
    """A network, and how its images are made from their number and a seed."""

    load: Callable[[], ir.Model]
    images: Callable[[int, int], NDArray[np.float32]]


def drawn_images(count: int, seed: int) -> NDArray[np.float32]:
    """Return pictures of the demo, as its network takes them."""
    pixels = np.stack([generator.draw_image(seed, number).decode() for number in range(count)])
    return np.ascontiguousarray((pixels / 127.5 - 1).transpose(0, 3, 1, 2), np.float32)


def with_groups() -> ir.Model:
    """Return a stem of 3 channels, groups, a channel multiplier, and a product."""
    return from_text(
        GROUPS,
        stem_weight=floats(16, 3, 3, 3) / 5,
        grouped_weight=floats(32, 4, 3, 3, seed=1) / 6,
        multiplied_weight=floats(64, 1, 3, 3, seed=2) / 3,
        head_weight=floats(10, 64, seed=3),
    )


def patches(side: int) -> Callable[[int, int], NDArray[np.float32]]:
    """Return what draws random patches of colour."""
    return lambda count, seed: zoo.images(side, count, seed)


# A residual network of random weights is not here: where kernels round a sum differently, it makes
# 31 dB of the difference. The demo's network is residual, and trained.
SMALL, LARGE = ("demo", "groups"), ("transformer",)
NETWORKS = {
    "demo": Network(lambda: onnx_io.load(NETWORK), drawn_images),
    "groups": Network(with_groups, patches(64)),
    "transformer": Network(lambda: zoo.net("vit-tiny"), patches(64)),
}


def int8_files(names: Sequence[str], folder: Path) -> Iterator[tuple[tuple[str, str], File]]:
    """Yield networks in INT8: `portable`, `exact` (8 bits without a limit), and for `arm`."""
    for name in names:
        network = NETWORKS[name]
        model = network.load()
        (image,) = onnx_io.inputs(model)
        onnx_io.save(model, folder / "net.onnx")
        arrays: dict[str, Any] = {image.name: network.images(CALIBRATION, 1)}
        np.savez(folder / "images.npz", **arrays)
        feeds = {image.name: network.images(HELD_OUT, 2)}
        for kind, machine in ("portable", "x86_64"), ("exact", "x86_64"), ("arm", "aarch64"):
            yield (name, kind), File(quantized(folder, machine, kind == "portable"), feeds)


def quantized(folder: Path, machine: str, portable: bool) -> onnx.ModelProto:
    """Quantize the network of a folder for the CPUs of a machine."""
    output = folder / "int8.onnx"
    settings = {"quantize.effort": "none", "quantize.portable": portable}
    store = {"QCONVERT_CACHE_DIR": str(folder / "store")}
    with (
        mock.patch.object(platform, "machine", return_value=machine),
        mock.patch.dict(os.environ, store),
    ):
        qconvert.quantize(
            folder / "net.onnx",
            output=output,
            backend="cpu",
            images=folder / "images.npz",
            settings=settings,
        )
    return onnx.load(output)
