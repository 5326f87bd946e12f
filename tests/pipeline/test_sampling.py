"""The images of a search: each with its own label, and none counted twice."""

from pathlib import Path

import pytest

from qconvert import config_file
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import PRESETS
from qconvert.pipeline import prepared, sampling, seen
from qconvert.pipeline.calibrate import Job
from qconvert.pipeline.graphs import Basis
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.scoring import Exam
from qconvert.store import Store
from tests import models
from tests.conftest import write
from tests.models import from_text
from tests.pictures import draw_folder

STORE = Store(Path(".store"))


def basis(batch: str = "batch") -> Basis:
    stored = models.tiny().graph.initializers.values()
    weights = {str(each.name): each.const_value.numpy() for each in stored if each.const_value}
    write(from_text(models.TINY.replace("batch", batch), **weights), Path("m.onnx"))
    draw_folder(Path("images"), 24, 8)
    config = config_file.load(None, {"model": "m.onnx", "calibration.images": "images"})
    ready = prepared.load(config, STORE, quiet, trust=False)
    return Basis(ready, config, seen.measured(ready, config, Job(Path("o.onnx")), STORE, quiet))


def quiet(progress: Progress) -> None:
    """Hear nothing of the progress."""


def exam(base: Basis, count: int) -> Exam:
    """Return images whose labels are their own numbers, as far as there are classes."""
    files = sorted(draw_folder(Path("val"), count, 8).iterdir())
    rows = [f"{file.name},{number % 5}" for number, file in enumerate(files)]
    Path("val/labels.csv").write_text("file,label\n" + "\n".join(rows))
    images = open_images(ImageChoice(Path("val")), base.ready.source.inputs, PRESETS["imagenet"])
    return Exam(Path("m.onnx"), images, {})


def test_a_picture_that_cannot_be_read_takes_its_label_with_it() -> None:
    base = basis()
    judged = exam(base, 12)
    (Path("val") / judged.images.names[0]).write_bytes(b"no picture")
    wanted = sampling.for_evaluation(base, judged).wanted
    assert list(wanted.labels) == [number % 5 for number in range(1, 12)]
    assert sum(len(each[wanted.scores]) for each in wanted.answers) == 11


@pytest.mark.parametrize(("count", "kept"), [(5, 5), (8, 8), (12, 8)])
def test_images_repeated_to_fill_a_fixed_batch_do_not_count(count: int, kept: int) -> None:
    base = basis(batch="8")
    sample = sampling.for_evaluation(base, exam(base, count))
    assert list(sample.wanted.labels) == [number % 5 for number in range(kept)]
    assert [len(each[sample.wanted.scores]) for each in sample.wanted.answers] == [kept]
    assert [len(feeds["image"]) for feeds in sample.images()] == [8]


def test_those_held_out_of_a_few_do_not_count_twice_either() -> None:
    base = basis(batch="8")
    assert base.found is not None
    assert [len(feeds["image"]) for feeds in base.found.images()] == [8]
    assert base.found.count == 4
    assert list(sampling.for_search(base).wanted.labels) == [None] * 4
