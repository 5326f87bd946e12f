"""Workers get whole batches, so that no batch depends on the number of workers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qconvert.graph.taps import add_calibration_taps
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.run.calibrate import shard_range
from qconvert.run.calibration_workers import fill_batches, split_parts
from tests import models
from tests.models import floats

COUNTS = st.integers(0, 5000)


@given(COUNTS, st.integers(1, 20))
def test_shards_cover_every_image_once_and_start_with_a_batch(count: int, shards: int) -> None:
    parts = [shard_range(count, (number, shards)) for number in range(1, shards + 1)]
    assert [index for part in parts for index in part] == list(range(count))
    assert all(part.start % CALIBRATION_BATCH == 0 for part in parts if part)


@given(COUNTS, COUNTS, st.integers(1, 9))
def test_workers_get_whole_batches_of_every_image_once(a: int, b: int, workers: int) -> None:
    start, stop = min(a, b), max(a, b)
    shares = split_parts([range(start, stop)] if a != b else [], workers)
    assert len(shares) <= workers
    assert [index for share in shares for part in share for index in part] == [*range(start, stop)]
    assert all((part.start - start) % CALIBRATION_BATCH == 0 for share in shares for part in share)


def test_shares_of_workers_differ_by_at_most_a_batch() -> None:
    shares = split_parts([range(0, 1000), range(1400, 1500)], 7)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= CALIBRATION_BATCH


def test_there_are_no_more_workers_than_batches() -> None:
    assert split_parts([range(3)], 10**30) == [[range(3)]]


def test_outputs_of_the_padding_are_cut_from_a_short_batch() -> None:
    tapped = add_calibration_taps(models.tiny())
    sizes: list[int] = []

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(feeds["image"]))
        rows = feeds["image"].reshape(len(feeds["image"]), -1)
        return {
            name: np.array([7]) if name == tap.size else rows
            for tap in tapped.taps
            for name in (tap.low, tap.size)
        }

    outputs = fill_batches(run, 4, tapped)({"image": floats(3, 2)})
    assert sizes == [4]
    for tap in tapped.taps:
        np.testing.assert_array_equal(outputs[tap.low], floats(3, 2))
        np.testing.assert_array_equal(outputs[tap.size], [7])
