"""A model of fixed batch answers for short batches too."""

import numpy as np

from qconvert.graph.taps import add_calibration_taps
from qconvert.run.calibration_workers import fill_batches
from tests import models
from tests.models import floats


def test_a_short_batch_is_filled_up_and_the_filling_left_out() -> None:
    tapped = add_calibration_taps(models.tiny())
    seen: list[int] = []

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(feeds["image"]))
        rows = feeds["image"].reshape(len(feeds["image"]), -1)
        return {
            name: np.array([7]) if name == each.size else rows
            for each in tapped.taps
            for name in (each.low, each.size)
        }

    answers = fill_batches(run, 4, tapped)({"image": floats(3, 2)})
    assert seen == [4]
    for each in tapped.taps:
        np.testing.assert_array_equal(answers[each.low], floats(3, 2))
        np.testing.assert_array_equal(answers[each.size], [7])
