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
from qconvert.report.metrics import score_of
from qconvert.tasks.embed import EMBED
from qconvert.tasks.reading import Reading, TaskRequest

BOXES = TrueBoxes(np.zeros((0, 4), np.float32), *(np.zeros(0, t) for t in (np.int32, bool, "f4")))


@pytest.mark.parametrize("truth", [BOXES, TrueMask(Path("mask.png")), None])
def test_vectors_are_scored_by_labels_alone(truth: Truth | None) -> None:
    reading = Reading(EMBED, lambda outputs, frames: [], "")
    assert reading.truth_of(ImageEntry("a.png", label=3, truth=truth)) == 3
    assert reading.truth_of(ImageEntry("a.png", truth=truth)) is None


def test_vectors_without_labels_are_compared_and_read_as_a_note_says(tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, image=np.zeros((2, 3, 8, 8), np.float32))
    images = open_arrays(file, [TensorSpec("image", np.dtype(np.float32), ("N", 3, 8, 8))])
    comparison = Comparison(images, TaskRequest(task="embed"))
    (batch,) = images.batches(2)
    outputs: Tensors = {"vector": np.eye(2, 4, dtype=np.float32)}
    comparison.add(batch, {BASELINE: outputs, "int8": outputs})
    accuracy = comparison.summarize("int8", "engine")
    # Without labels there is no recall, and the cosine decides nothing.
    assert (accuracy.primary, list(accuracy.metrics)) == ("", ["cosine"])
    assert score_of(accuracy, "cosine") == pytest.approx(1)
    note = "task `embed`: a vector for each image, the first real output"
    assert note in comparison.summarize(BASELINE, "engine").notes
    assert note not in accuracy.notes


def test_metric_of_ones_own_leaves_the_agreement_of_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_scores.py").write_text("def half(predictions, truths): return {'half': 0.5}\n")
    file = tmp_path / "images.npz"
    np.savez(file, image=np.zeros((4, 3, 8, 8), np.float32))
    images = open_arrays(file, [TensorSpec("image", np.dtype(np.float32), ("N", 3, 8, 8))])
    comparison = Comparison(images, TaskRequest(metric="own_scores:half"))
    (batch,) = images.batches(4)
    scores = np.eye(4, dtype=np.float32)
    comparison.add(batch, {BASELINE: {"scores": scores}, "int8": {"scores": scores[[0, 1, 3, 3]]}})
    accuracy = comparison.summarize("int8", "engine")
    assert (accuracy.metrics, accuracy.primary) == ({"half": 0.5}, "half")
    assert accuracy.agreement == 75.0
