"""Measure how far the outputs of a rewritten network are from those of its float original."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors

ErrorArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OutputError:
    """The error of each image (`per_image_errors`), and of all images (`noise_to_signal`).

    `changed` has the `prediction_changes` of the images.
    """

    per_image: ErrorArray
    noise_to_signal: float
    changed: ErrorArray = field(default_factory=lambda: np.zeros(1))


def per_image_errors(
    reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int] = ()
) -> ErrorArray:
    """Return for each image the error of its outputs, averaged over outputs.

    The error of a row of scores is the KL divergence of its probabilities; of other real outputs,
    the squared error relative to the mean square over all images; of integers, the share that
    changed. It is infinite for outputs that are not finite or have another shape.

    `images` counts the images of each batch, by default the rows of the first output. The number of
    errors returned depends only on the reference.
    """
    counts = list(images) or [
        max(rows, 1) for rows in _batch_sizes(reference, next(iter(reference[0])))
    ]
    errors = [_output_errors(name, reference, outputs, counts) for name in reference[0]]
    mean: ErrorArray = np.mean(errors, axis=0)
    return mean


def prediction_changes(
    reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int] = ()
) -> ErrorArray:
    """Return 1 for each image whose top class changed, else 0.

    Outputs that are not one row of scores per image change nothing; scores of another shape count
    as changed. `images` is as for `per_image_errors`.
    """
    names = [name for name in reference[0] if all(_are_scores(batch[name]) for batch in reference)]
    counts = list(images) or (_batch_sizes(reference, names[0]) if names else [])
    changes = [
        np.concatenate(
            [
                np.argmax(before[name], axis=1) != np.argmax(after[name], axis=1)
                if np.shape(before[name]) == np.shape(after[name])
                else np.ones(len(before[name]), np.bool_)
                for before, after in zip(reference, outputs, strict=True)
            ]
        )
        for name in names
        if any(counts) and _batch_sizes(reference, name) == counts
    ]
    mean: ErrorArray = np.mean(changes, axis=0, dtype=np.float64) if changes else np.zeros(1)
    return mean


def sqnr_db(reference: Tensors, outputs: Tensors) -> float:
    """Return the SQNR of all real outputs together, in decibels."""
    ratio = sqnr_from_powers(*_powers([reference], [outputs]))
    return -math.inf if ratio is None else ratio


def sqnr_from_powers(signal: float, error: float) -> float | None:
    """Return 10 log10(signal / error), the signal-to-quantization-noise ratio of two powers.

    An error of zero gives infinity, and one that is not finite minus infinity. None where the
    signal is not finite, or zero beside an error.
    """
    if not math.isfinite(signal):
        return None
    if not math.isfinite(error):
        return -math.inf
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else None


def noise_to_signal(reference: Sequence[Tensors], outputs: Sequence[Tensors]) -> float:
    """Return the power of the error of all real outputs over that of the reference.

    Where the reference is zero throughout, the power of the error itself.
    """
    signal, error = _powers(reference, outputs)
    return error / (signal or 1.0) if math.isfinite(error) else math.inf


def _powers(reference: Sequence[Tensors], outputs: Sequence[Tensors]) -> tuple[float, float]:
    """Return the sums of squares of all real outputs and of their errors.

    An output of another shape, such as the boxes of a detector, has an infinite error.
    """
    signal = error = 0.0
    for before, after in zip(reference, outputs, strict=True):
        for name, array in before.items():
            if np.asarray(array).dtype.kind == "f":
                expected = np.asarray(array, dtype=np.float64)
                actual = np.asarray(after[name], dtype=np.float64)
                same_shape = expected.shape == actual.shape
                signal += float(np.square(expected).sum())
                error += float(np.square(expected - actual).sum()) if same_shape else math.inf
    return signal, error


def kl_divergence(reference: NDArray[Any], outputs: NDArray[Any]) -> ErrorArray:
    """Return KL(p || q) = sum p log(p / q) of each row of scores or probabilities.

    A row of the reference that adds up to 1 is probabilities, and so is the row compared with it,
    whatever quantization made of its sum; all other rows are scores, as a softmax takes them.
    """
    probable = _are_probabilities(reference)
    log_p = _log_probabilities(reference, probable)
    log_q = _log_probabilities(outputs, probable)
    divergence: ErrorArray = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return divergence


def to_probabilities(scores: NDArray[Any]) -> ErrorArray:
    """Return each row as probabilities, which rows that add up to 1 are already."""
    probabilities: ErrorArray = np.exp(_log_probabilities(scores, _are_probabilities(scores)))
    return probabilities


def _batch_sizes(batches: Sequence[Tensors], name: str) -> list[int]:
    return [len(np.atleast_1d(batch[name])) for batch in batches]


def _are_scores(array: Any) -> bool:
    shape = np.shape(array)
    return len(shape) == 2 and shape[1] > 1


def _output_errors(
    name: str, reference: Sequence[Tensors], outputs: Sequence[Tensors], counts: list[int]
) -> ErrorArray:
    """Return the error of one output for each image.

    An output without a row for each image, such as boxes, counts alike for all images of a batch.
    """
    pairs = [
        (np.atleast_1d(before[name]), np.atleast_1d(after[name]))
        for before, after in zip(reference, outputs, strict=True)
    ]
    shapes = {before.shape[1:] for before, _ in pairs}
    same_shapes = all(before.shape == after.shape for before, after in pairs)
    if same_shapes and len(shapes) == 1 and _batch_sizes(reference, name) == counts:
        return _row_errors(*(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)))
    errors = [_row_errors(before, after) for before, after in pairs]
    per_image: ErrorArray = np.concatenate(
        [
            rows if len(rows) == count else np.full(count, rows.mean())
            for rows, count in zip(errors, counts, strict=True)
        ]
    )
    return per_image


def _row_errors(reference: NDArray[Any], output: NDArray[Any]) -> ErrorArray:
    rows = reference.shape[0]
    if reference.shape != output.shape:
        return np.full(max(rows, 1), np.inf)
    if not reference.size:
        return np.zeros(max(rows, 1))
    if reference.dtype.kind != "f":
        changed: ErrorArray = (reference != output).reshape(rows, -1).mean(axis=1)
        return changed
    expected = reference.astype(np.float64).reshape(rows, -1)
    actual = output.astype(np.float64).reshape(rows, -1)
    comparable, finite = np.isfinite(expected).min(axis=1), np.isfinite(actual).min(axis=1)
    # An image on which the reference itself is not finite compares with nothing.
    expected = np.where(comparable[:, None], expected, 0.0)
    actual = np.where((comparable & finite)[:, None], actual, 0.0)
    if _are_scores(reference):
        errors = kl_divergence(expected, actual)
    else:
        power = np.square(expected).sum(axis=1).mean()
        errors = np.square(expected - actual).sum(axis=1) / (power or 1.0)
    return np.where(comparable, np.where(finite, errors, np.inf), 0.0)


def _are_probabilities(scores: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each row whether its numbers add up to 1, as those of a Softmax do."""
    sums = scores.astype(np.float64).sum(axis=1)
    probable: NDArray[np.bool_] = (scores >= 0).all(axis=1) & (np.abs(sums - 1.0) < 1e-3)
    return probable


def _log_probabilities(scores: NDArray[Any], probable: NDArray[np.bool_]) -> ErrorArray:
    """Return the log-softmax of each row, for probabilities that of their logarithms."""
    scores = scores.astype(np.float64)
    scores = np.where(probable[:, np.newaxis], np.log(np.maximum(scores, 1e-12)), scores)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: ErrorArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
