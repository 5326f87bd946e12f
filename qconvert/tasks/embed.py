"""The task `embed`: a vector for each image, near those of images with the same label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, output_array
from qconvert.tasks.embedding_metrics import cosines, mean_cosine, retrieval_change, retrieve
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
    identity = list(range(len(rows)))
    agreement = _neighbour_agreement(before, after) if len(identity) > 1 else None
    metrics = {} if cosine is None else {"cosine": cosine}
    if all(label is None for label in labels):
        return TaskScores(0, metrics, agreement, by_image=by_image)
    old, new = retrieve(before, labels), retrieve(after, labels)
    if new.recall1 is None or new.recall5 is None or old.recall1 is None:
        return TaskScores(0, metrics, agreement, by_image=by_image)
    change = retrieval_change(old, new)
    return TaskScores(
        change.queries,
        {"recall1": new.recall1, "recall5": new.recall5, **metrics},
        agreement,
        new.recall1 - old.recall1,
        _half_width(change.lost, change.won, change.queries),
        by_image,
    )


def _half_width(lost: int, won: int, queries: int) -> float:
    """Return half the 95 % interval of a change of proportions, as for top-1 (`paired_change`)."""
    total = queries + 2
    losing, winning = (lost + 1) / total, (won + 1) / total
    return 1.96 * math.sqrt((losing + winning - (winning - losing) ** 2) / total)


def _neighbour_agreement(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    nearest = []
    for vectors in (before, after):
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        similarity = np.nan_to_num(unit @ unit.T, nan=-2.0)
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(similarity.argmax(axis=1))
    return float(np.mean(nearest[0] == nearest[1]))


EMBED = Task(
    "embed",
    "recall1",
    METRICS,
    compare,
    summarize,
    text="a vector for each image, the first real output",
    read=read_vectors,
)
