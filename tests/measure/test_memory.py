"""The peak memory of a fresh process that really runs the model."""

from pathlib import Path

import numpy as np
import pytest

from qconvert.measure.memory import PeakMemory, measure_peak
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


def test_a_model_takes_at_least_what_its_tensors_do(tiny: Path, tmp_path: Path) -> None:
    shape = np.array([8 * MB, 1])
    heavy = write(models.from_text(HEAVY, shape=shape), tmp_path / "heavy.onnx")
    small, large = measure_peak(tiny, feeds(2, 3, 8, 8), 1), measure_peak(heavy, feeds(4), 1)
    assert small.bytes is not None
    assert large.bytes is not None
    # 8 Mi x 4 floats.
    assert large.bytes - small.bytes > 100 * MB
    assert small.before_bytes is not None
    assert 10 * MB < small.before_bytes < small.bytes < small.before_bytes + 100 * MB


def test_what_this_process_holds_does_not_count(tiny: Path) -> None:
    alone = measure_peak(tiny, feeds(1, 3, 8, 8), 1)
    held = np.ones(400 * MB, np.uint8)
    beside = measure_peak(tiny, feeds(1, 3, 8, 8), 1)
    assert held.any()
    assert alone.bytes is not None
    assert beside.bytes is not None
    assert abs(beside.bytes - alone.bytes) < 50 * MB


def test_a_model_that_does_not_run_is_not_measured_and_says_why(tiny: Path) -> None:
    found = measure_peak(tiny, feeds(1, 3, 8), 1)
    assert found.bytes is None
    assert "process of its own: Invalid rank for input" in found.reason
    missing = measure_peak(tiny.with_name("missing.onnx"), feeds(1))
    assert missing.bytes is None
    assert "missing.onnx" in missing.reason


def test_a_model_that_takes_too_long_is_not_measured_and_says_why(tiny: Path) -> None:
    assert measure_peak(tiny, feeds(1, 3, 8, 8), timeout_seconds=0.01).reason == (
        "the model did not run within 0.01 s"
    )


def test_modules_that_lie_about_are_not_imported(tiny: Path) -> None:
    tiny.with_name("numpy.py").write_text("raise SystemExit('not this one')")
    assert measure_peak(tiny, feeds(1, 3, 8, 8), 1).bytes is not None


def test_nothing_measured_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="has a reason"):
        PeakMemory(None)
