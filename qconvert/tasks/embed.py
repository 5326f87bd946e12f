"""The task `embed`: a vector for each image, near those of images with the same label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, output_array
from qconvert.tasks.bootstrap import paired_change
from qconvert.tasks.embedding_metrics import (
    cosines,
    mean_cosine,
    nearest_neighbours,
    retrieval_change,
    retrieve,
)
from qconvert.tasks.task import Task, TaskScores

METRICS = {"recall1": "recall@1", "recall5": "recall@5", "cosine": "cosine"}


@dataclass(frozen=True, eq=False)
class EmbeddingRow:
    """One image: the vectors of FP32 and of the engine, and its label."""

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    label: int | None


def read_vectors(outputs: Tensors, count: int) -> list[NDArray[np.float32]]:
    """Return the vector of each image: its row of the first real output."""
    for name in outputs:
        array = output_array(outputs, name)
        if array.dtype.kind == "f" and array.ndim >= 2 and len(array) == count:
            return list(array.reshape(count, -1).astype(np.float32))
    raise QConvertError(
        "no output holds a vector of real numbers for each image",
        hint="`--task embed` is for networks with one; leave it out",
    )


def compare(
    reference: NDArray[np.float32], vector: NDArray[np.float32], truth: int | None
) -> EmbeddingRow:
    """Keep what the images are compared by, all of them together."""
    return EmbeddingRow(reference, vector, truth)


def summarize(rows: Sequence[EmbeddingRow]) -> TaskScores:
    """Return how often the nearest other images have the same label, and the cosine to FP32.

    An image agrees with FP32 if its nearest neighbour among the images is that of FP32.
    """
    before, after = (np.stack([getattr(row, name) for row in rows]) for name in ("before", "after"))
    labels = [row.label for row in rows]
    cosine = mean_cosine(before, after)
    near = cosines(before, after).tolist()
    by_image = tuple(None if math.isnan(value) else value for value in near)
    agreement = None
    if len(rows) > 1:
        nearest = [nearest_neighbours(vectors) for vectors in (before, after)]
        agreement = float(np.mean(nearest[0] == nearest[1]))
    metrics = {} if cosine is None else {"cosine": cosine}
    if all(label is None for label in labels):
        return TaskScores(0, metrics, agreement, by_image=by_image)
    old, new = retrieve(before, labels), retrieve(after, labels)
    if new.recall1 is None or new.recall5 is None or old.recall1 is None:
        return TaskScores(0, metrics, agreement, by_image=by_image)
    counts = retrieval_change(old, new)
    change, half_width = paired_change(counts.lost, counts.won, counts.queries)
    return TaskScores(
        counts.queries,
        {"recall1": new.recall1, "recall5": new.recall5, **metrics},
        agreement,
        change / 100,
        half_width / 100,
        by_image,
    )


EMBED = Task(
    "embed",
    "recall1",
    METRICS,
    compare,
    summarize,
    text="a vector for each image, the first real output",
    read=read_vectors,
)
