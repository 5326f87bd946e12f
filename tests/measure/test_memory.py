"""The peak memory of a fresh process that runs the model."""

from pathlib import Path

import numpy as np
import pytest

from qconvert.measure.memory import measure_peak
from tests import models
from tests.conftest import write

MB = 2**20

HEAVY = """
<ir_version: 10, opset_import: ["": 20]>
heavy (float[n] image) => (float least) {
    wide = Expand (image, shape)
    tall = Add (wide, image)
    least = ReduceMax <keepdims: int = 0> (tall)
}
"""


def feeds(*shape: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"image": np.zeros(shape, np.float32)}


@pytest.mark.slow
def test_peak_grows_with_the_tensors_of_the_model(tiny: Path, tmp_path: Path) -> None:
    shape = np.array([8 * MB, 1])
    heavy = write(models.from_text(HEAVY, shape=shape), tmp_path / "heavy.onnx")
    small, large = measure_peak(tiny, feeds(2, 3, 8, 8), 1), measure_peak(heavy, feeds(4), 1)
    assert small.bytes is not None
    assert large.bytes is not None
    # 8 Mi x 4 floats.
    assert large.bytes - small.bytes > 100 * MB
    assert small.before_bytes is not None
    assert 10 * MB < small.before_bytes < small.bytes < small.before_bytes + 100 * MB


@pytest.mark.slow
def test_memory_of_the_parent_process_does_not_count(tiny: Path) -> None:
    held = np.ones(400 * MB, np.uint8)
    peak = measure_peak(tiny, feeds(1, 3, 8, 8), 1)
    assert held.any()
    assert peak.bytes is not None
    assert peak.bytes < 400 * MB


@pytest.mark.slow
def test_failing_model_is_not_measured_with_a_reason(tiny: Path) -> None:
    invalid = measure_peak(tiny, feeds(1, 3, 8), 1)
    assert invalid.bytes is None
    assert "process of its own: Invalid rank for input" in invalid.reason
    missing = measure_peak(tiny.with_name("missing.onnx"), feeds(1))
    assert missing.bytes is None
    assert "missing.onnx" in missing.reason


def test_slow_model_is_not_measured_with_a_reason(tiny: Path) -> None:
    assert measure_peak(tiny, feeds(1, 3, 8, 8), timeout_seconds=0.01).reason == (
        "the model did not run within 0.01 s"
    )


def test_modules_beside_the_model_are_not_imported(tiny: Path) -> None:
    tiny.with_name("numpy.py").write_text("raise SystemExit('not this one')")
    assert measure_peak(tiny, feeds(1, 3, 8, 8), 1).bytes is not None
