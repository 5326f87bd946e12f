"""The network that ships: small, whole, good enough, and still so in INT8."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.config import Config
from qconvert.demo import generator
from qconvert.demo.demo_files import EVALUATION_IMAGES, NETWORK
from qconvert.demo.drawing import IMAGE_SIZE
from qconvert.demo.generator import CLASSES, write_images
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import PRESETS
from qconvert.run import job_images
from qconvert.sources import onnx_file
from tests.conftest import Outcome

COUNT = 400


def test_it_is_one_small_valid_file_with_a_free_batch() -> None:
    assert NETWORK.stat().st_size <= 2_500_000
    onnx.checker.check_model(str(NETWORK), full_check=True)
    model = onnx_io.load(NETWORK)
    (image,) = onnx_io.inputs(model)
    assert image.shape == ("batch", 3, IMAGE_SIZE, IMAGE_SIZE)
    assert onnx_io.outputs(model)[0].shape[1:] == (len(CLASSES),)


def test_it_is_a_mobilenet_with_its_batch_norms_folded() -> None:
    nodes = list(onnx_io.load(NETWORK).graph)
    operators = {node.op_type for node in nodes}
    assert operators == {"Conv", "Clip", "Add", "ReduceMean", "Gemm"}
    groups = [node.attributes.get_int("group", 1) for node in nodes if node.op_type == "Conv"]
    assert sum(group > 1 for group in groups) > 10


def test_it_says_itself_how_its_pictures_are_prepared() -> None:
    source = onnx_file.load(str(NETWORK), Config().export, trust=False)
    known = job_images.fitted_preprocessing(source, Config().preprocess)
    assert (known.resize, known.crop) == ((IMAGE_SIZE, IMAGE_SIZE), "none")
    assert (known.mean, known.std) == (PRESETS["inception"].mean, PRESETS["inception"].std)


def test_the_text_beside_it_is_about_this_file() -> None:
    text = NETWORK.with_suffix(".md").read_text(encoding="utf-8")
    assert file_sha256(NETWORK) in text
    top1 = re.search(r"top-1 ([\d.]+) %", text)
    assert top1 is not None
    assert 95 <= float(top1[1]) <= 99.5


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drawn")
    write_images(place, EVALUATION_IMAGES.seed, COUNT)
    return place


def right(model: Path, evaluation: Path) -> NDArray[np.bool_]:
    """Return which pictures a model names rightly."""
    source = onnx_file.load(str(model), Config().export, trust=False)
    known = job_images.fitted_preprocessing(source, Config().preprocess)
    run, found = open_cpu(source.model), []
    for batch in open_images(ImageChoice(evaluation), source.inputs, known).batches(8):
        scores = next(iter(run(batch.feeds).values()))
        found += list(np.argmax(scores, 1) == [item.label for item in batch.items])
    return np.array(found)


def test_it_is_right_on_pictures_it_has_not_seen(evaluation: Path) -> None:
    assert 0.95 <= right(NETWORK, evaluation).mean() <= 0.995


def test_int8_loses_less_than_a_point(evaluation: Path, qconvert: Callable[..., Outcome]) -> None:
    images = evaluation.parent / "calibration"
    write_images(images, generator.CALIBRATION_SEED, generator.CALIBRATION_COUNT)
    done = qconvert("quantize", NETWORK, "--images", images, "-o", "int8.onnx")
    assert done.code == 0, done.err
    before, after = (right(each, evaluation).mean() for each in (NETWORK, Path("int8.onnx")))
    assert after > before - 0.01
