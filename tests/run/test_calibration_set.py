"""A calibration is the same from every source, and some of its images are held out."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.calibration import pack_calibration as pack
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress
from qconvert.core.tensors import Tensors
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, CalibrationSet, split_holdout
from qconvert.run import calibrate as calibration_job
from qconvert.run.calibrate import (
    calibrate,
    load_calibration_set,
    measure_calibration_set,
    prepare_calibration,
    shard_range,
    split_parts,
)
from qconvert.run.context import JobContext
from qconvert.run.export import load_and_clean
from qconvert.sources import LoadedModel
from tests.image_files import draw_images
from tests.models import floats
from tests.run.calibrated import make_context, write_tiny_model

IMAGES = 40
COUNTS = st.integers(0, 5000)
HOLDOUT = [*range(16, 20), *range(36, 40)]
TRAINING = [index for index in range(IMAGES) if index not in HOLDOUT]


@dataclass
class Job:
    """A model with images, calibrated in every way; it is interrupted at batch `stop_at`."""

    context: JobContext
    loaded: LoadedModel
    events: list[Progress] = field(default_factory=list)
    stop_at: int = 0

    @property
    def batches(self) -> int:
        return sum(event.total > 0 for event in self.events)

    def record(self, event: Progress) -> None:
        self.events.append(event)
        if event.total and self.batches == self.stop_at:
            raise KeyboardInterrupt

    def measure(self) -> CalibrationSet:
        self.events.clear()
        return measure_calibration_set(self.loaded, replace(self.context, progress=self.record))

    def calibrate(self) -> Calibration:
        return calibrate(self.context, Path("c.npz"))

    def load(self, images: str | None = None) -> CalibrationSet:
        return load_calibration_set(self.loaded, make_context(images), Path("c.npz"))

    def read(self, indices: list[int]) -> list[Tensors]:
        """Return single images as inputs of the model."""
        images = prepare_calibration(self.loaded, self.context).images
        batches = list(images.batches(1))
        return [batches[index].feeds for index in indices]


def make_job(
    count: int = IMAGES, batch: str = "batch", images: str = "images", exact: bool = False
) -> Job:
    if images == "images":
        draw_images(Path(images), count, 8)
    write_tiny_model(batch)
    context = make_context(images, exact=exact)
    return Job(context, load_and_clean(context))


def assert_same_images(actual: list[Tensors], expected: list[Tensors]) -> None:
    a, b = (np.concatenate([feeds["image"] for feeds in side]) for side in (actual, expected))
    np.testing.assert_array_equal(a, b)


@settings(deadline=None)
@given(COUNTS)
def test_holdout_is_whole_batches_spread_over_the_list(count: int) -> None:
    holdout, others = split_holdout(count)
    parts = sorted([*holdout, *others], key=lambda part: part.start)
    assert [index for part in parts for index in part] == list(range(count))
    assert all(part.start % CALIBRATION_BATCH == 0 for part in parts)
    assert all(len(part) == CALIBRATION_BATCH for part in holdout)
    size = sum(map(len, holdout))
    fifth = count // (5 * CALIBRATION_BATCH) * CALIBRATION_BATCH
    assert min(fifth, 48) - CALIBRATION_BATCH < size <= 64
    gaps = {after.start - before.start for before, after in pairwise(holdout)}
    assert len(gaps) <= 1
    assert not holdout or holdout[0].start <= max(gaps, default=count)


@pytest.mark.parametrize("count", [0, 1, 8, 16, 17, 19, 20])
def test_holdout_of_few_images_is_at_most_one_batch(count: int) -> None:
    size = sum(map(len, split_holdout(count)[0]))
    assert size == 0 if count <= 16 else size in (0, CALIBRATION_BATCH)


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


def test_worker_count_is_at_most_batch_count() -> None:
    assert split_parts([range(3)], 10**30) == [[range(3)]]


@pytest.mark.parametrize(("count", "exact"), [(IMAGES, False), (IMAGES, True), (12, False)])
def test_full_calibration_equals_that_of_calibrate_byte_for_byte(count: int, exact: bool) -> None:
    job = make_job(count, exact=exact)
    result = job.measure()
    assert pack(result.full) == pack(job.calibrate())
    assert result.full.image_indices.tolist() == list(range(count))


def test_second_calibration_comes_from_the_cache() -> None:
    job = make_job()
    first = job.measure()
    end = job.events[-1]
    second = job.measure()
    assert [end.stored, job.events[-1].stored] == [False, True]
    assert job.batches == 0
    assert job.events[-1].text == end.text == "40 images, 4 tensors"
    assert pack(second.full) == pack(first.full)
    assert pack(second.training) == pack(first.training)
    assert_same_images(list(second.validation_batches()), list(first.validation_batches()))


def test_changed_image_is_calibrated_again() -> None:
    job = make_job()
    first = job.measure()
    Path("images/0007.png").write_bytes(Path("images/0008.png").read_bytes())
    assert pack(job.measure().full) != pack(first.full)
    assert not job.events[-1].stored


def test_validation_images_are_not_in_the_training_calibration() -> None:
    job = make_job()
    result = job.measure()
    assert (result.excludes_holdout, result.validation_count) == (True, len(HOLDOUT))
    assert result.training.image_indices.tolist() == TRAINING
    assert result.training.origin == result.full.origin
    for _ in range(2):  # they can be read repeatedly
        assert_same_images(list(result.validation_batches()), job.read(HOLDOUT))


def test_few_images_are_used_for_calibration_and_validation() -> None:
    job = make_job(12)
    result = job.measure()
    assert (result.excludes_holdout, result.has_holdout, result.validation_count) == (
        False,
        False,
        12,
    )
    batches = [*result.training_batches(8), *result.holdout_batches(8, 99)]
    assert_same_images(batches, job.read([*range(4), *range(4, 12)]))
    assert pack(result.training) == pack(result.full)
    assert_same_images(list(result.validation_batches()), job.read(list(range(12))))


@pytest.mark.parametrize("number", [3, 8, 9])
def test_interrupted_calibration_resumes_to_the_same_bytes(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_job, "SAVE_SECONDS", 0.0)
    job = make_job()
    job.stop_at = number
    with pytest.raises(KeyboardInterrupt):
        job.measure()
    job.stop_at = 0
    result = job.measure()
    # The last batch was not saved yet.
    assert job.batches == IMAGES // CALIBRATION_BATCH - (number - 1)
    assert pack(result.full) == pack(job.calibrate())
    assert result.training.image_indices.tolist() == TRAINING
    assert not list(Path(".store/calibrate").glob(".*"))


def test_two_processes_that_calibrate_the_same_agree() -> None:
    job, other = make_job(), make_job()
    results: list[CalibrationSet] = []

    def measure_other(event: Progress) -> None:
        if event.total and not results:
            results.append(other.measure())

    own = measure_calibration_set(job.loaded, replace(job.context, progress=measure_other))
    assert pack(own.full) == pack(results[0].full)


def test_calibration_file_of_another_model_is_rejected() -> None:
    make_job().calibrate()
    other = make_job(batch="n")
    with pytest.raises(UsageError, match=r"`c.npz` was measured on another model than `m.onnx`"):
        other.load()


def test_calibration_file_has_validation_images_only_with_their_folder() -> None:
    job = make_job()
    expected = job.calibrate()
    result = job.load()
    assert pack(result.full) == pack(result.training) == pack(expected)
    with pytest.raises(UsageError, match="some of the calibration images") as raised:
        list(result.validation_batches())
    assert "--images PATH" in raised.value.hint
    Path("images").rename("moved")
    result = job.load("moved")
    batches = list(result.validation_batches())
    assert (result.excludes_holdout, result.validation_count) == (False, len(HOLDOUT))
    Path("moved").rename("images")
    assert_same_images(batches, job.read(HOLDOUT))


def test_arrays_are_split_like_image_files() -> None:
    images = floats(IMAGES, 3, 8, 8)
    np.savez("images.npz", image=images)
    job = make_job(images="images.npz")
    assert pack(job.measure().full) == pack(job.calibrate())
    holdout = [{"image": images[HOLDOUT]}]
    assert_same_images(list(job.measure().validation_batches()), holdout)
    assert_same_images(list(job.load("images.npz").validation_batches()), holdout)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_model_of_fixed_batch_gets_batches_that_it_takes(batch: int) -> None:
    job = make_job(batch=str(batch))
    result = job.measure()
    assert pack(result.full) == pack(job.calibrate())
    run = open_cpu(job.loaded.model)
    rows = sum(len(run(feeds)["scores"]) for feeds in result.validation_batches())
    assert rows == result.validation_count > 0


@pytest.mark.parametrize("broken", [range(4), range(16, 20), range(4, 8)])
def test_broken_images_are_skipped(broken: range) -> None:
    job = make_job()
    for index in broken:
        Path(f"images/{index:04}.png").write_bytes(b"no image")
    expected = job.calibrate()
    result = job.measure()
    assert pack(result.full) == pack(expected)
    readable = [index for index in HOLDOUT if index not in broken]
    assert sum(len(feeds["image"]) for feeds in result.validation_batches()) == len(readable)


def test_too_many_broken_images_are_rejected() -> None:
    job = make_job()
    for index in range(IMAGES):
        if index % CALIBRATION_BATCH:
            Path(f"images/{index:04}.png").write_bytes(b"no image")
    for action in (job.calibrate, job.measure):
        with pytest.raises(QConvertError, match="too many"):
            action()
