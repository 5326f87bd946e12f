"""Workers get whole batches, so that no batch depends on the number of workers."""

from hypothesis import given
from hypothesis import strategies as st

from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.run.calibrate import shard_range
from qconvert.run.calibration_workers import split_parts

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
