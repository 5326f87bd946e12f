"""How far the answers of a rewritten network are from those of the network it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors

ErrorArray = NDArray[np.float64]


def per_image_errors(
    wanted: Sequence[Tensors], got: Sequence[Tensors], images: Sequence[int] = ()
) -> ErrorArray:
    """Return for each image how far its outputs are from what is wanted, the mean over outputs.

    A row of scores counts with the KL divergence of its probabilities, all else with its squared
    error relative to the mean of the squares of all images, and integers with the share of those
    that changed. Infinite where an answer is not finite, or of another shape.

    `images` counts those of each batch; without, the rows of the first output do. How many numbers
    are returned depends on what is wanted alone.
    """
    counts = list(images) or [max(rows, 1) for rows in _batch_sizes(wanted, next(iter(wanted[0])))]
    far = [_tensor_errors(name, wanted, got, counts) for name in wanted[0]]
    mean: ErrorArray = np.mean(far, axis=0)
    return mean


def prediction_changes(
    wanted: Sequence[Tensors], got: Sequence[Tensors], images: Sequence[int] = ()
) -> ErrorArray:
    """Return 1 for each image whose highest score is another one, 0 for the others.

    Outputs that are no rows of scores change nothing: those without a row for each image, too.
    Scores of another shape are other answers. `images` is as for `distances`.
    """
    names = [name for name in wanted[0] if all(_are_scores(feeds[name]) for feeds in wanted)]
    counts = list(images) or (_batch_sizes(wanted, names[0]) if names else [])
    rows = [
        np.concatenate(
            [
                _top_classes(before[name]) != _top_classes(after[name])
                if np.shape(before[name]) == np.shape(after[name])
                else np.ones(len(before[name]), np.bool_)
                for before, after in zip(wanted, got, strict=True)
            ]
        )
        for name in names
        if any(counts) and _batch_sizes(wanted, name) == counts
    ]
    found: ErrorArray = np.mean(rows, axis=0, dtype=np.float64) if rows else np.zeros(1)
    return found


def _batch_sizes(wanted: Sequence[Tensors], name: str) -> list[int]:
    return [len(np.atleast_1d(feeds[name])) for feeds in wanted]


def _are_scores(array: Any) -> bool:
    shape = np.shape(array)
    return len(shape) == 2 and shape[1] > 1


def _top_classes(scores: NDArray[Any]) -> NDArray[np.intp]:
    found: NDArray[np.intp] = np.asarray(scores).argmax(axis=1)
    return found


def sqnr_db(wanted: Tensors, got: Tensors) -> float:
    """Return the power of all real outputs over that of their error, in decibels."""
    signal, error = _powers([wanted], [got])
    if not error:
        return float("inf")
    return float(10 * np.log10(signal / error)) if signal and np.isfinite(error) else -np.inf


def noise_to_signal(wanted: Sequence[Tensors], got: Sequence[Tensors]) -> float:
    """Return the power of the error of all real outputs over that of the outputs."""
    signal, error = _powers(wanted, got)
    # Where all that is wanted is zero, the error counts as it is.
    return error / (signal or 1.0) if np.isfinite(error) else np.inf


def _powers(wanted: Sequence[Tensors], got: Sequence[Tensors]) -> tuple[float, float]:
    """Return the sums of the squares of all real outputs, and of their errors.

    What is of another shape, as of a detector that finds other boxes, has an infinite error.
    """
    signal = error = 0.0
    for before, after in zip(wanted, got, strict=True):
        for name, array in before.items():
            if np.asarray(array).dtype.kind == "f":
                a, b = (np.asarray(each, dtype=np.float64) for each in (array, after[name]))
                signal += float(np.square(a).sum())
                error += float(np.square(a - b).sum()) if a.shape == b.shape else np.inf
    return signal, error


def kl_divergence(wanted: NDArray[Any], got: NDArray[Any]) -> ErrorArray:
    """Return the KL divergence of each row of scores, or of probabilities where they are such."""
    probable = _are_probabilities(wanted)
    before, after = _log_probabilities(wanted, probable), _log_probabilities(got, probable)
    apart: ErrorArray = (np.exp(before) * (before - after)).sum(axis=1)
    return apart


def to_probabilities(scores: NDArray[Any]) -> ErrorArray:
    """Return each row as probabilities, which rows that add up to 1 are already."""
    likely: ErrorArray = np.exp(_log_probabilities(scores, _are_probabilities(scores)))
    return likely


def _tensor_errors(
    name: str, wanted: Sequence[Tensors], got: Sequence[Tensors], counts: list[int]
) -> ErrorArray:
    """Return how far one output of each image is.

    What has no row for each image, as boxes, or the places that they refer to, counts for all
    images of its batch alike.
    """
    pairs = [
        (np.atleast_1d(before[name]), np.atleast_1d(after[name]))
        for before, after in zip(wanted, got, strict=True)
    ]
    shapes = {before.shape[1:] for before, _ in pairs}
    same = all(before.shape == after.shape for before, after in pairs)
    if same and len(shapes) == 1 and _batch_sizes(wanted, name) == counts:
        before, after = (np.concatenate(each) for each in zip(*pairs, strict=True))
        return _row_errors(before, after)
    found = [_row_errors(before, after) for before, after in pairs]
    each: ErrorArray = np.concatenate(
        [
            far if len(far) == count else np.full(count, far.mean())
            for far, count in zip(found, counts, strict=True)
        ]
    )
    return each


def _row_errors(wanted: NDArray[Any], got: NDArray[Any]) -> ErrorArray:
    rows = wanted.shape[0]
    if wanted.shape != got.shape:
        # As of a detector that finds another number of boxes.
        return np.full(max(rows, 1), np.inf)
    if not wanted.size:
        return np.zeros(max(rows, 1))
    if wanted.dtype.kind not in "f":
        changed: ErrorArray = (wanted != got).reshape(rows, -1).mean(axis=1)
        return changed
    a, b = (each.astype(np.float64).reshape(rows, -1) for each in (wanted, got))
    known, finite = (_all_finite(each) for each in (a, b))
    # An image on which the reference itself has no numbers compares with nothing.
    a, b = np.where(known[:, None], a, 0.0), np.where((known & finite)[:, None], b, 0.0)
    if wanted.ndim == 2 and a.shape[1] > 1:
        far = kl_divergence(a, b)
    else:
        # Where all that is wanted is zero, the error counts as it is.
        far = np.square(a - b).sum(axis=1) / (np.square(a).sum(axis=1).mean() or 1.0)
    return np.where(known, np.where(finite, far, np.inf), 0.0)


def _all_finite(rows: ErrorArray) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isfinite(rows).min(axis=1)
    return found


def _are_probabilities(scores: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each row whether its numbers add up to 1, as what a Softmax makes does."""
    sums = scores.astype(np.float64).sum(axis=1)
    found: NDArray[np.bool_] = (scores >= 0).all(axis=1) & (np.abs(sums - 1.0) < 1e-3)
    return found


def _log_probabilities(scores: NDArray[Any], probable: NDArray[np.bool_]) -> ErrorArray:
    scores = scores.astype(np.float64)
    logs_of = np.log(np.maximum(scores, 1e-12))
    scores = np.where(probable[:, np.newaxis], logs_of, scores)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: ErrorArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


@dataclass(frozen=True, eq=False)
class OutputError:
    """The error of a model's outputs against those of its reference, on the same images.

    `per_image` has the `per_image_errors` and `changed` the `prediction_changes`, one number an
    image; `noise_to_signal` is that of all images together.
    """

    per_image: ErrorArray
    noise_to_signal: float
    changed: ErrorArray = field(default_factory=lambda: np.zeros(1))


def measure_output_error(
    reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int] = ()
) -> OutputError:
    """Return every measure of the error of these outputs; `images` is as for the measures."""
    return OutputError(
        per_image_errors(reference, outputs, images),
        noise_to_signal(reference, outputs),
        prediction_changes(reference, outputs, images),
    )
