from pathlib import Path

import numpy as np
import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors
from qconvert.images.frames import Frame
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.heads import Sample
from qconvert.tasks.predictions import ClassMap, Detections

FRAMES = [Frame(100, 50, 50, 25, (0.5, 0.5))] * 2
OUTPUTS: Tensors = {"x": np.ones((2, 3), np.float32)}
SAMPLE = Sample(OUTPUTS, (50, 25))


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_decoders.py").write_text(
        "import numpy as np\n"
        "def boxes(outputs, frames):\n"
        "    assert frames[0].input_size == (50, 25)\n"
        "    one = [[1, 2, 3, 4], [10, 10, 20, 20], [0, 0, np.nan, 1]], [.5, .9, .8], [0, 7, 1]\n"
        "    return [one, ([], [], [])]\n"
        "def masks(outputs, frames): return [np.ones((25, 50), int)] * len(frames)\n"
        "def short(outputs, frames): return [([], [], [])]\n"
        "def nothing(outputs, frames): return None\n"
        "def uneven(outputs, frames): return [([[1, 2, 3, 4]], [.5, .4], [0])] * 2\n"
        "def words(outputs, frames): return ['a cat', 'a dog']\n"
        "def failing(outputs, frames): return outputs['y']\n"
        "def lonely(outputs): return []\n"
    )


def test_boxes_of_a_function_become_detections_of_the_picture() -> None:
    decoder, head = find_decoder(SAMPLE, "own_decoders:boxes")
    assert decoder.task == "detect"
    first, second = decode(OUTPUTS, head, FRAMES)
    assert isinstance(first, Detections)
    assert isinstance(second, Detections)
    assert first.boxes.tolist() == [[20, 20, 40, 40], [2, 4, 6, 8]]
    assert first.classes.tolist() == [7, 0]
    assert first.dropped == 1
    assert len(second) == 0


def test_arrays_of_a_function_become_class_maps() -> None:
    decoder, head = find_decoder(SAMPLE, "own_decoders:masks")
    assert decoder.task == "segment"
    result = decode(OUTPUTS, head, FRAMES)[1]
    assert isinstance(result, ClassMap)
    assert (result.to_picture() == 1).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned 1 results for 2 pictures"),
        ("nothing", "returned NoneType for 2 pictures"),
        ("uneven", r"of the shapes \[1, 4\], \[2\], \[1\]"),
        ("words", "returned a str for a picture"),
        ("failing", "raised KeyError: 'y'"),
        ("lonely", "raised TypeError"),
    ],
)
def test_what_a_function_should_not_return_is_refused(name: str, message: str) -> None:
    with pytest.raises(QConvertError, match=message):
        find_decoder(SAMPLE, f"own_decoders:{name}")


def test_missing_function_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="has no `boxen`; did you mean `boxes`"):
        find_decoder(SAMPLE, "own_decoders:boxen")
