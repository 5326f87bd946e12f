"""The demo network is small, complete and accurate, also in INT8."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.config import Config
from qconvert.demo import generator
from qconvert.demo.demo_files import EVALUATION_IMAGES, NETWORK
from qconvert.demo.generator import CLASSES, IMAGE_SIZE, write_images
from qconvert.images import ImageChoice, open_images
from qconvert.images.preprocess import PRESETS, Preprocess
from qconvert.run import context
from qconvert.sources import onnx_file
from tests.conftest import Outcome

COUNT = 400


def test_demo_network_is_one_small_valid_file_with_a_dynamic_batch() -> None:
    assert NETWORK.stat().st_size <= 2_500_000
    onnx.checker.check_model(str(NETWORK), full_check=True)
    model = onnx_io.load(NETWORK)
    (image,) = onnx_io.inputs(model)
    assert image.shape == ("batch", 3, IMAGE_SIZE, IMAGE_SIZE)
    assert onnx_io.outputs(model)[0].shape[1:] == (len(CLASSES),)


def test_demo_network_is_a_mobilenet_with_folded_batch_norms() -> None:
    nodes = list(onnx_io.load(NETWORK).graph)
    operators = {node.op_type for node in nodes}
    assert operators == {"Conv", "Clip", "Add", "ReduceMean", "Gemm"}
    groups = [node.attributes.get_int("group", 1) for node in nodes if node.op_type == "Conv"]
    assert sum(group > 1 for group in groups) > 10


def test_demo_network_carries_its_preprocessing() -> None:
    source = onnx_file.load(str(NETWORK), Config().export, trust=False)
    preprocess = Preprocess.from_dict(context.fitted_preprocessing(source, Config().preprocess))
    assert (preprocess.resize, preprocess.crop) == ((IMAGE_SIZE, IMAGE_SIZE), "none")
    assert (preprocess.mean, preprocess.std) == (
        PRESETS["inception"].mean,
        PRESETS["inception"].std,
    )


def test_demo_network_description_matches_the_file() -> None:
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


def top1(model: Path, evaluation: Path) -> float:
    """Return the share of images that a model classifies correctly."""
    source = onnx_file.load(str(model), Config().export, trust=False)
    preprocess = Preprocess.from_dict(context.fitted_preprocessing(source, Config().preprocess))
    run, correct = open_cpu(source.model), []
    for batch in open_images(ImageChoice(evaluation), source.inputs, preprocess).batches(8):
        scores = next(iter(run(batch.feeds).values()))
        correct += list(np.argmax(scores, 1) == [item.label for item in batch.items])
    return float(np.mean(correct))


@pytest.mark.long
def test_demo_network_is_accurate_on_evaluation_images(evaluation: Path) -> None:
    assert 0.95 <= top1(NETWORK, evaluation) <= 0.995


@pytest.mark.long
def test_demo_network_loses_less_than_a_point_in_int8(
    evaluation: Path, qconvert: Callable[..., Outcome]
) -> None:
    images = evaluation.parent / "calibration"
    write_images(images, generator.CALIBRATION_SEED, generator.CALIBRATION_COUNT)
    outcome = qconvert("quantize", NETWORK, "--images", images, "-o", "int8.onnx")
    assert outcome.code == 0, outcome.err
    before, after = (top1(model, evaluation) for model in (NETWORK, Path("int8.onnx")))
    assert after > before - 0.01
