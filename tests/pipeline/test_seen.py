"""What calibration saw is the same from wherever it comes, and choices get images of their own."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.backends.ort import open_cpu
from qconvert.calibrate import calibration_file
from qconvert.calibrate.calibration import Calibration, merge_calibrations
from qconvert.calibrate.calibration_file import pack
from qconvert.core import config_file
from qconvert.core.cache import Cache
from qconvert.core.config import Config
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress
from qconvert.core.tensors import Tensors
from qconvert.optimize.calibration_set import CALIBRATION_BATCH, CalibrationSet
from qconvert.run import calibration_sets, load_model
from qconvert.run.calibrate import CalibrationRequest, calibrate, prepare_calibration
from qconvert.run.calibration_sets import split_holdout
from qconvert.sources import LoadedModel
from tests import models
from tests.conftest import write
from tests.models import floats, from_text
from tests.pictures import draw_folder

IMAGES = 40
HELD = [*range(16, 20), *range(36, 40)]
STORE = Cache(Path(".store"))
KEPT = [number for number in range(IMAGES) if number not in HELD]


@dataclass
class World:
    """A model and pictures in this folder, and what is done with them."""

    config: Config
    ready: LoadedModel
    told: list[Progress] = field(default_factory=list)
    stop_at: int = 0

    @property
    def batches(self) -> int:
        return sum(progress.total > 0 for progress in self.told)

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)
        if progress.total and self.batches == self.stop_at:
            raise KeyboardInterrupt

    def measured(self) -> CalibrationSet:
        self.told.clear()
        return calibration_sets.measure(
            self.ready, self.config, CalibrationRequest(Path("o.onnx")), STORE, self.tell
        )

    def calibrated(self) -> Calibration:
        return calibrate(self.config, CalibrationRequest(Path("c.npz")), STORE, self.tell)

    def from_file(self, images: str | None = None) -> CalibrationSet:
        given = {"model": "m.onnx", "calibration.images": images}
        return calibration_sets.load(self.ready, config_file.load(None, given), Path("c.npz"))

    def pictures(self, places: list[int]) -> list[Tensors]:
        """Return single pictures as the model takes them."""
        every = list(prepare_calibration(self.ready, self.config).images.batches(1))
        return [every[place].feeds for place in places]


def world(
    count: int = IMAGES, batch: str = "batch", images: str = "images", exact: bool = False
) -> World:
    if images == "images":
        draw_folder(Path(images), count, 8)
    stored = models.tiny().graph.initializers.values()
    weights = {str(each.name): each.const_value.numpy() for each in stored if each.const_value}
    write(from_text(models.TINY.replace("batch", batch), **weights), Path("m.onnx"))
    given = {"model": "m.onnx", "calibration.images": images, "calibration.exact": exact}
    config = config_file.load(None, given)
    return World(
        config, load_model.load_and_clean(config, STORE, lambda progress: None, trust=False)
    )


def same(found: list[Tensors], wanted: list[Tensors]) -> None:
    a, b = (np.concatenate([feeds["image"] for feeds in each]) for each in (found, wanted))
    np.testing.assert_array_equal(a, b)


@settings(deadline=None)
@given(st.integers(0, 5000))
def test_whole_batches_are_held_out_spread_over_the_list(count: int) -> None:
    held, others = split_holdout(count)
    parts = sorted([*held, *others], key=lambda part: part.start)
    assert [place for part in parts for place in part] == list(range(count))
    assert all(part.start % CALIBRATION_BATCH == 0 for part in parts)
    assert all(len(part) == CALIBRATION_BATCH or part.stop == count for part in held)
    assert (
        min(count // (5 * CALIBRATION_BATCH) * CALIBRATION_BATCH, 48) - CALIBRATION_BATCH
        < sum(map(len, held))
        <= 64
    )
    gaps = {after.start - before.start for before, after in pairwise(held)}
    assert len(gaps) <= 1
    assert not held or held[0].start <= max(gaps, default=count)


@pytest.mark.parametrize("count", [0, 1, 8, 16, 17, 19, 20])
def test_of_few_images_a_batch_is_held_out_or_none(count: int) -> None:
    assert sum(map(len, split_holdout(count)[0])) in (
        [0] if count <= 16 else [0, CALIBRATION_BATCH]
    )


@pytest.mark.parametrize(("count", "exact"), [(IMAGES, False), (IMAGES, True), (12, False)])
def test_the_whole_is_byte_for_byte_what_calibrate_makes(count: int, exact: bool) -> None:
    here = world(count, exact=exact)
    found = here.measured()
    assert pack(found.full) == pack(here.calibrated())
    assert found.full.image_indices.tolist() == list(range(count))


def test_a_second_time_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    first = here.measured()
    ended = here.told[-1]
    monkeypatch.setattr(calibration_sets, "measure_to", None)
    again = here.measured()
    assert [ended.stored, here.told[-1].stored] == [False, True]
    assert here.told[-1].text == ended.text == "40 images, 4 tensors"
    assert pack(again.full) == pack(first.full)
    assert pack(again.training) == pack(first.training)
    same(list(again.validation_batches()), list(first.validation_batches()))


def test_another_picture_is_another_calibration() -> None:
    here = world()
    first = here.measured()
    Path("images/0007.png").write_bytes(Path("images/0008.png").read_bytes())
    assert pack(here.measured().full) != pack(first.full)
    assert not here.told[-1].stored


def test_images_to_choose_with_are_not_those_that_ranges_come_from() -> None:
    here = world()
    found = here.measured()
    assert (found.excludes_holdout, found.validation_count) == (True, len(HELD))
    assert found.training.image_indices.tolist() == KEPT
    assert found.training.origin == found.full.origin
    for _ in range(2):  # they can be read any number of times
        same(list(found.validation_batches()), here.pictures(HELD))


def test_few_images_are_chosen_with_and_calibrated_on() -> None:
    here = world(12)
    found = here.measured()
    assert (found.excludes_holdout, found.has_holdout, found.validation_count) == (False, False, 12)
    same(
        [*found.training_batches(8), *found.holdout_batches(8, 99)],
        here.pictures([*range(4), *range(4, 12)]),
    )
    assert pack(found.training) == pack(found.full)
    same(list(found.validation_batches()), here.pictures(list(range(12))))


@pytest.mark.parametrize("number", [3, 8, 9])
def test_what_was_stopped_goes_on_to_the_same_bytes(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_file.make_periodic_saver, "__defaults__", (0.0, time.monotonic))
    here = world()
    here.stop_at = number
    with pytest.raises(KeyboardInterrupt):
        here.measured()
    here.stop_at = 0
    found = here.measured()
    assert here.batches == IMAGES // CALIBRATION_BATCH - (
        number - 1
    )  # the last one was not saved yet
    assert pack(found.full) == pack(here.calibrated())
    assert found.training.image_indices.tolist() == KEPT
    assert not list(Path(".store/calibrate").glob(".*"))


def test_two_that_work_on_the_same_both_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = world(), world()
    found: list[CalibrationSet] = []

    def slow(*parts: Calibration) -> Calibration:
        monkeypatch.setattr(calibration_sets, "merge", merge_calibrations)
        found.append(other.measured())
        return merge_calibrations(*parts)

    monkeypatch.setattr(calibration_sets, "merge", slow)
    assert pack(here.measured().full) == pack(found[0].full)


def test_a_file_of_another_model_is_refused() -> None:
    world().calibrated()
    other = world(batch="n")
    with pytest.raises(UsageError, match=r"`c.npz` was measured on another model than `m.onnx`"):
        other.from_file()


def test_a_file_gives_ranges_without_images_and_choices_with_them() -> None:
    here = world()
    wanted = here.calibrated()
    found = here.from_file()
    assert pack(found.full) == pack(found.training) == pack(wanted)
    with pytest.raises(UsageError, match="some of the calibration images") as raised:
        list(found.validation_batches())
    assert "--images PATH" in raised.value.hint
    Path("images").rename("moved")
    found = here.from_file("moved")
    pictures = list(found.validation_batches())
    assert (found.excludes_holdout, found.validation_count) == (False, len(HELD))
    Path("moved").rename("images")
    same(pictures, here.pictures(HELD))


def test_arrays_do_as_well_as_pictures() -> None:
    images = floats(IMAGES, 3, 8, 8)
    np.savez("images.npz", image=images)
    here = world(images="images.npz")
    assert pack(here.measured().full) == pack(here.calibrated())
    held = [{"image": images[HELD]}]
    same(list(here.measured().validation_batches()), held)
    same(list(here.from_file("images.npz").validation_batches()), held)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_model_of_fixed_batch_is_measured_and_chosen_for_as_any_other(batch: int) -> None:
    here = world(batch=str(batch))
    found = here.measured()
    assert pack(found.full) == pack(here.calibrated())
    run = open_cpu(here.ready.model)
    assert (
        sum(len(run(feeds)["scores"]) for feeds in found.validation_batches())
        == found.validation_count
        > 0
    )


@pytest.mark.parametrize("broken", [range(4), range(16, 20), range(4, 8)])
def test_broken_pictures_are_passed_over_as_calibrate_does(broken: range) -> None:
    here = world()
    for number in broken:
        Path(f"images/{number:04}.png").write_bytes(b"no picture")
    wanted = here.calibrated()
    found = here.measured()
    assert pack(found.full) == pack(wanted)
    left = [number for number in HELD if number not in broken]
    assert sum(len(feeds["image"]) for feeds in found.validation_batches()) == len(left)


def test_too_many_broken_pictures_are_refused_as_calibrate_does() -> None:
    here = world()
    for number in range(IMAGES):
        if number % CALIBRATION_BATCH:
            Path(f"images/{number:04}.png").write_bytes(b"no picture")
    for work in (here.calibrated, here.measured):
        with pytest.raises(QConvertError, match="too many"):
            work()
