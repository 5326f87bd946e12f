"""The images of a search keep their own labels, and no image counts twice."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qconvert.core.tensors import Tensors
from qconvert.images import ImageChoice, open_images
from qconvert.images.listing import Images
from qconvert.images.preprocess import PRESETS
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.run.search import make_evaluation_images, make_search_images
from qconvert.run.variants import BuildInputs
from qconvert.tasks.reading import TaskRequest
from tests.image_files import draw_images
from tests.run.calibrated import calibrated_inputs


def evaluation_set(inputs: BuildInputs, count: int) -> Images:
    """Return images whose labels are their own numbers, up to the number of classes."""
    files = sorted(draw_images(Path("val"), count, 8).iterdir())
    rows = [f"{file.name},{number % 5}" for number, file in enumerate(files)]
    Path("val/labels.csv").write_text("file,label\n" + "\n".join(rows))
    return open_images(ImageChoice(Path("val")), inputs.loaded.source.inputs, PRESETS["imagenet"])


def test_unreadable_image_is_skipped_with_its_label() -> None:
    inputs, _ = calibrated_inputs()
    images = evaluation_set(inputs, 12)
    (Path("val") / images.names[0]).write_bytes(b"no image")
    reference = make_evaluation_images(inputs, images, TaskRequest())
    assert [item.label for item in reference.items] == [number % 5 for number in range(1, 12)]
    assert sum(len(outputs[reference.score_output]) for outputs in reference.outputs) == 11


@pytest.mark.parametrize(("count", "counted"), [(5, 5), (8, 8), (12, 8)])
def test_images_repeated_to_fill_a_fixed_batch_do_not_count(count: int, counted: int) -> None:
    inputs, _ = calibrated_inputs(batch="8")
    images = make_evaluation_images(inputs, evaluation_set(inputs, count), TaskRequest())
    assert [item.label for item in images.items] == [number % 5 for number in range(counted)]
    assert [len(outputs[images.score_output]) for outputs in images.rows] == [counted]
    assert [len(batch["image"]) for batch in images.batches] == [8]


def test_few_images_held_out_do_not_count_twice() -> None:
    inputs, _ = calibrated_inputs(batch="8")
    assert inputs.calibration is not None
    batches = inputs.calibration.validation_batches()
    assert [len(batch["image"]) for batch in batches] == [8]
    assert inputs.calibration.validation_count == 4
    assert len(make_search_images(inputs, TaskRequest()).items) == 4


@dataclass(frozen=True)
class CountedCalibration(CalibrationSet):
    """A calibration that counts how often its validation images are read."""

    reads: list[str] = field(default_factory=list)

    def validation_batches(self) -> Iterator[Tensors]:
        self.reads.append("validation")
        return super().validation_batches()


def test_batches_are_read_once_unless_they_are_too_large_to_hold() -> None:
    inputs, _ = calibrated_inputs()
    calibration = CountedCalibration(**vars(inputs.calibration))
    inputs = replace(inputs, calibration=calibration)
    held = make_search_images(inputs, TaskRequest()).batches
    assert len(list(held)) == len(list(held)) == len(calibration.reads) == 1
    reread = make_search_images(inputs, TaskRequest(), max_bytes=1).batches
    assert len(list(reread)) == len(list(reread)) == 1
    assert len(calibration.reads) == 4
