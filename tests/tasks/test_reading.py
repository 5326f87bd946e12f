"""How the outputs of a network are read, and by which truth they are scored."""

from pathlib import Path

import numpy as np
import pytest

from qconvert.core.tensors import Tensors, TensorSpec
from qconvert.images.arrays import open_arrays
from qconvert.images.listing import ImageEntry
from qconvert.images.truth import TrueBoxes, TrueMask, Truth
from qconvert.measure.accuracy import BASELINE
from qconvert.measure.comparison import Comparison
from qconvert.tasks.embed import EMBED
from qconvert.tasks.reading import Reading, TaskRequest

BOXES = TrueBoxes(np.zeros((0, 4), np.float32), *(np.zeros(0, t) for t in (np.int32, bool, "f4")))


@pytest.mark.parametrize("truth", [BOXES, TrueMask(Path("mask.png")), None])
def test_vectors_are_scored_by_labels_alone(truth: Truth | None) -> None:
    reading = Reading(EMBED, lambda outputs, frames: [], "")
    assert reading.truth_of(ImageEntry("a.png", label=3, truth=truth)) == 3
    assert reading.truth_of(ImageEntry("a.png", truth=truth)) is None


def test_notes_of_fp32_say_how_outputs_are_read(tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, image=np.zeros((2, 3, 8, 8), np.float32))
    images = open_arrays(file, [TensorSpec("image", np.dtype(np.float32), ("N", 3, 8, 8))])
    comparison = Comparison(images, TaskRequest(task="embed"))
    (batch,) = images.batches(2)
    outputs: Tensors = {"vector": np.eye(2, 4, dtype=np.float32)}
    comparison.add(batch, {BASELINE: outputs, "int8": outputs})
    note = "task `embed`: the first real output is the vector"
    assert note in comparison.summarize(BASELINE, "engine").notes
    assert note not in comparison.summarize("int8", "engine").notes
