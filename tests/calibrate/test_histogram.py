"""The share of clipped values, the histogram of values, and the drift of ranges."""

import numpy as np
import pytest

from qconvert.calibrate.summary import clipped_share, equal_width_counts, range_drift
from qconvert.core.scales import Range
from tests.calibrate.activations import summary_of
from tests.models import floats


def test_values_outside_a_range_are_clipped() -> None:
    values = floats(20, 5000)
    summary = summary_of(values)
    share = ((values < -1) | (values > 2)).mean()
    assert clipped_share(summary, Range(-1, 2)) == pytest.approx(share, rel=0.01)
    assert clipped_share(summary, Range(summary.low, summary.high)) == 0


def test_values_on_a_range_limit_are_not_clipped() -> None:
    summary = summary_of(np.array([[0, 0, 0, 6, 6, 3]], dtype=np.float32))
    assert clipped_share(summary, Range(0, 6)) == 0
    assert clipped_share(summary, Range(0, 5)) == pytest.approx(2 / 6)


def test_histogram_bars_add_up_to_all_values() -> None:
    values = floats(20, 5000)
    counts = equal_width_counts(summary_of(values), 10)
    assert counts == pytest.approx(np.histogram(values, 10)[0], abs=values.size * 0.002)
    assert counts.sum() == pytest.approx(values.size)


def test_constant_tensor_fills_one_bar() -> None:
    assert equal_width_counts(
        summary_of(np.full((3, 10), 2.5, dtype=np.float32)), 4
    ).max() == pytest.approx(30)


def test_steady_images_have_no_drift() -> None:
    assert range_drift(summary_of(floats(400, 500))) < 0.05


def test_growing_range_has_drift() -> None:
    growing = floats(40, 500) * np.linspace(1, 4, 40, dtype=np.float32)[:, np.newaxis]
    assert range_drift(summary_of(growing)) > 0.08


def test_range_of_few_images_has_full_drift() -> None:
    assert range_drift(summary_of(floats(7, 500))) == 1.0


def test_constant_tensor_has_no_drift() -> None:
    assert range_drift(summary_of(np.ones((40, 10), dtype=np.float32))) == 0.0
