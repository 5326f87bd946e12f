"""A run that tests share: built once, and copied for each test that uses it."""

from pathlib import Path

import numpy as np
import pytest

import qconvert
from qconvert.core import onnx_io
from qconvert.graph.patterns import constant_array, set_constant
from tests.image_files import draw_images
from tests.models import mixed

QUICK = {"bench.seconds": 0.02, "bench.batch-sizes": [1, 4]}
CLASSES = tuple(f"kind {number}" for number in range(24))


def draw_world(folder: Path) -> None:
    """Write a model, calibration images and labelled evaluation images."""
    onnx_io.save(mixed(), folder / "model.onnx")
    draw_images(folder / "calib_data", 16)
    files = sorted(draw_images(folder / "val", 16, size=20).iterdir())
    rows = [f"{file.name},{number % 24}" for number, file in enumerate(files)]
    (folder / "val/labels.csv").write_text("file,label\n" + "\n".join(rows))
    (folder / "val/classes.txt").write_text("\n".join(CLASSES))


def build(root: Path) -> None:
    """Build `run`: the CPU in fp32 and int8, TensorRT for RTX in fp32."""
    draw_world(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("QCONVERT_CACHE_DIR", str(root / ".store"))
        run = qconvert.build(
            "model.onnx",
            output="run",
            images="calib_data",
            eval="val",
            precisions=["fp32", "int8"],
            settings=QUICK,
        )
        qconvert.resume(run, backends="tensorrt-rtx", precisions="fp32", settings=QUICK)
        qconvert.bench(run, settings=QUICK)


def enlarge_weights(path: Path) -> None:
    """Set the integers of every weight of a file to 127, so that sums of pairs saturate."""
    model = onnx_io.load(path)
    for value in model.graph.initializers.values():
        array = constant_array(value)
        if array is not None and array.dtype == np.int8 and array.ndim > 1:
            set_constant(value, np.full_like(array, 127))
    onnx_io.save(model, path)
