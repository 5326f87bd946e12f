"""Metrics of embeddings: whether the nearest other images have the same label, and cosine to FP32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows of similarities computed at a time: 256 × 50,000 images take 100 MB in float64.
_BLOCK = 256
_DEPTH = 5


@dataclass(frozen=True, eq=False)
class Retrieval:
    """For each image with a label, whether one of its nearest neighbours has the same.

    Only images count whose label another image has, too: no network could find one for the others.
    `queries` are their indices; `right1` and `right5` say of each whether the nearest one, or one of
    the nearest five, is right.
    """

    queries: NDArray[np.intp]
    right1: NDArray[np.bool_]
    right5: NDArray[np.bool_]

    @property
    def recall1(self) -> float | None:
        """The share of images whose nearest neighbour has the same label."""
        return float(self.right1.mean()) if self.right1.size else None

    @property
    def recall5(self) -> float | None:
        """The share of images with the same label among the nearest five."""
        return float(self.right5.mean()) if self.right5.size else None

    @property
    def metrics(self) -> dict[str, float | None]:
        """The numbers by the names that reports use."""
        return {"recall1": self.recall1, "recall5": self.recall5}


@dataclass(frozen=True)
class RetrievalChange:
    """Images whose nearest neighbour was right only before, or only after, of all that count.

    `bootstrap.paired_change` makes the change and its interval of these numbers.
    """

    lost: int
    won: int
    queries: int


def retrieve(embeddings: NDArray[Any], labels: Sequence[int | None]) -> Retrieval:
    """Search the nearest neighbours of each image, by cosine, among the other images with labels.

    Of equally near ones the first counts. An embedding that is not finite, or zero, is nobody's
    neighbour, and its own search finds nothing.
    """
    labelled = np.array([row for row, label in enumerate(labels) if label is not None], np.intp)
    numbers = np.array([label for label in labels if label is not None], np.int64)
    vectors = _unit_rows(embeddings[labelled])
    usable = np.array([not np.isnan(vector).any() for vector in vectors], np.bool_)
    vectors = np.where(usable[:, None], vectors, 0.0)
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[inverse] > 1)
    first = np.zeros(len(queries), np.bool_)
    any_of_five = np.zeros(len(queries), np.bool_)
    for start in range(0, len(queries), _BLOCK):
        rows = queries[start : start + _BLOCK]
        similarity = vectors[rows] @ vectors.T
        similarity[:, ~usable] = -np.inf
        similarity[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :_DEPTH]
        reached = np.take_along_axis(similarity, nearest, axis=1) > -np.inf
        right = (numbers[nearest] == numbers[rows][:, None]) & reached & usable[rows][:, None]
        first[start : start + len(rows)] = right[:, 0]
        any_of_five[start : start + len(rows)] = right.any(axis=1)
    return Retrieval(labelled[queries], first, any_of_five)


def retrieval_change(before: Retrieval, after: Retrieval) -> RetrievalChange:
    """Return how the nearest neighbours of the same images changed."""
    lost, won = before.right1 & ~after.right1, after.right1 & ~before.right1
    return RetrievalChange(int(lost.sum()), int(won.sum()), len(before.queries))


def nearest_neighbours(embeddings: NDArray[Any]) -> NDArray[np.intp]:
    """Return the index of the nearest other image of each, by cosine; of equal ones the first.

    Images without a direction are nearest to none, and to the first other image themselves.
    """
    vectors = _unit_rows(embeddings)
    usable: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(vectors), axis=1)
    vectors = np.where(usable[:, None], vectors, 0.0)
    nearest = np.zeros(len(vectors), np.intp)
    for start in range(0, len(vectors), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(vectors)))
        similarity = vectors[rows] @ vectors.T
        similarity[:, ~usable] = -2.0
        similarity[~usable[rows]] = -2.0
        similarity[np.arange(len(rows)), rows] = -np.inf
        nearest[rows] = similarity.argmax(axis=1)
    return nearest


def cosines(reference: NDArray[Any], embeddings: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each image's embedding to FP32's; NaN where one has no direction."""
    product = (_unit_rows(reference) * _unit_rows(embeddings)).sum(axis=1)
    cosine: NDArray[np.float64] = np.clip(product, -1.0, 1.0)
    return cosine


def mean_cosine(reference: NDArray[Any], embeddings: NDArray[Any]) -> float | None:
    """Return the mean cosine to FP32 over the images that have one."""
    cosine = cosines(reference, embeddings)
    defined = cosine[~np.isnan(cosine)]
    return float(defined.mean()) if defined.size else None


def _unit_rows(embeddings: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rows with length 1; those that have no direction become NaN."""
    width = math.prod(embeddings.shape[1:])
    rows = embeddings.reshape(len(embeddings), width).astype(np.float64)
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    # Divided by the largest value first, so that no square overflows.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(rows, largest, out=np.full_like(rows, np.nan), where=largest > 0)
    unit: NDArray[np.float64] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return unit
