"""The images of a search: each with its own label, and none counted twice."""

from pathlib import Path

import pytest

from qconvert.core import config_file
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import PRESETS
from qconvert.run import calibration_sets, load_model, search_job
from qconvert.run.calibrate import CalibrationRequest
from qconvert.run.job_images import EvaluationSet
from qconvert.run.variants import BuildInputs
from tests import models
from tests.conftest import write
from tests.models import from_text
from tests.pictures import draw_folder

STORE = Cache(Path(".store"))


def basis(batch: str = "batch") -> BuildInputs:
    stored = models.tiny().graph.initializers.values()
    weights = {str(each.name): each.const_value.numpy() for each in stored if each.const_value}
    write(from_text(models.TINY.replace("batch", batch), **weights), Path("m.onnx"))
    draw_folder(Path("images"), 24, 8)
    config = config_file.load(None, {"model": "m.onnx", "calibration.images": "images"})
    ready = load_model.load_and_clean(config, STORE, quiet, trust=False)
    return BuildInputs(
        ready,
        config,
        calibration_sets.measure(ready, config, CalibrationRequest(Path("o.onnx")), STORE, quiet),
    )


def quiet(progress: Progress) -> None:
    """Hear nothing of the progress."""


def exam(base: BuildInputs, count: int) -> EvaluationSet:
    """Return images whose labels are their own numbers, as far as there are classes."""
    files = sorted(draw_folder(Path("val"), count, 8).iterdir())
    rows = [f"{file.name},{number % 5}" for number, file in enumerate(files)]
    Path("val/labels.csv").write_text("file,label\n" + "\n".join(rows))
    images = open_images(ImageChoice(Path("val")), base.loaded.source.inputs, PRESETS["imagenet"])
    return EvaluationSet(Path("m.onnx"), images, {})


def test_a_picture_that_cannot_be_read_takes_its_label_with_it() -> None:
    base = basis()
    judged = exam(base, 12)
    (Path("val") / judged.images.names[0]).write_bytes(b"no picture")
    wanted = search_job.make_evaluation_images(base, judged).reference
    assert list(wanted.labels) == [number % 5 for number in range(1, 12)]
    assert sum(len(each[wanted.score_output]) for each in wanted.outputs) == 11


@pytest.mark.parametrize(("count", "kept"), [(5, 5), (8, 8), (12, 8)])
def test_images_repeated_to_fill_a_fixed_batch_do_not_count(count: int, kept: int) -> None:
    base = basis(batch="8")
    sample = search_job.make_evaluation_images(base, exam(base, count))
    assert list(sample.reference.labels) == [number % 5 for number in range(kept)]
    assert [len(each[sample.reference.score_output]) for each in sample.reference.outputs] == [kept]
    assert [len(feeds["image"]) for feeds in sample.batches] == [8]


def test_those_held_out_of_a_few_do_not_count_twice_either() -> None:
    base = basis(batch="8")
    assert base.calibration is not None
    assert [len(feeds["image"]) for feeds in base.calibration.validation_batches()] == [8]
    assert base.calibration.validation_count == 4
    assert list(search_job.make_search_images(base).reference.labels) == [None] * 4
