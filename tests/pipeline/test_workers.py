"""Work is dealt out in whole batches, so that no batch changes with the number of workers."""

from hypothesis import given
from hypothesis import strategies as st

from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.run.calibrate import shard_range
from qconvert.run.calibration_workers import split_parts

COUNTS = st.integers(0, 5000)


@given(COUNTS, st.integers(1, 20))
def test_shards_cover_every_image_once_and_start_with_a_batch(count: int, shards: int) -> None:
    parts = [shard_range(count, (number, shards)) for number in range(1, shards + 1)]
    assert [at for each in parts for at in each] == list(range(count))
    assert all(each.start % CALIBRATION_BATCH == 0 for each in parts if each)


@given(COUNTS, COUNTS, st.integers(1, 9))
def test_workers_share_what_is_left_in_whole_batches(a: int, b: int, workers: int) -> None:
    left = [range(min(a, b), max(a, b))] if a != b else []
    dealt = split_parts(left, workers)
    assert len(dealt) <= workers
    assert [at for share in dealt for run in share for at in run] == [
        at for run in left for at in run
    ]
    assert all((run.start - min(a, b)) % CALIBRATION_BATCH == 0 for share in dealt for run in share)


def test_no_worker_gets_more_than_a_batch_above_another() -> None:
    sizes = [sum(map(len, share)) for share in split_parts([range(0, 1000), range(1400, 1500)], 7)]
    assert max(sizes) - min(sizes) <= CALIBRATION_BATCH


def test_no_more_workers_than_batches_are_asked_for() -> None:
    assert split_parts([range(3)], 10**30) == [[range(3)]]
