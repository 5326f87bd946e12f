"""Measure the output error of a rewritten network against its float original."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors
from qconvert.measure.dense_error import dense_errors, find_dense_outputs, is_dense

ErrorArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OutputError:
    """The error of each image (`per_image_errors`), and of all (`weighed_noise_to_signal`).

    `changed` has the `prediction_changes` of the images. If it is `of_boxes`, the error of an image
    is that of its boxes, and that of all their mean.
    """

    per_image: ErrorArray
    noise_to_signal: float
    changed: ErrorArray = field(default_factory=lambda: np.zeros(1))
    of_boxes: bool = False

    @property
    def name(self) -> str:
        """What is compared."""
        return "error of boxes" if self.of_boxes else "output error"


def per_image_errors(
    reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int] = ()
) -> ErrorArray:
    """Return for each image the error of its outputs, averaged over outputs.

    The error of a row of scores is the KL divergence of its probabilities; of other real outputs,
    the squared error relative to the mean square over all images, of dense ones channel by channel
    (`dense_error`); of integers, the share that changed. It is infinite for outputs that are not
    finite or have another shape.

    `images` counts the images of each batch, by default the rows of the first output. The number of
    errors returned depends only on the reference.
    """
    counts = list(images)
    errors: dict[str, ErrorArray] = {}
    rows: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for name in reference[0]:
        before, after = (
            [np.atleast_1d(batch[name]) for batch in batches] for batches in (reference, outputs)
        )
        sizes = [len(array) for array in before]
        counts = counts or [max(size, 1) for size in sizes]
        same_shapes = [array.shape for array in before] == [array.shape for array in after]
        if same_shapes and sizes == counts and len({array.shape[1:] for array in before}) == 1:
            rows[name] = np.concatenate(before), np.concatenate(after)
            errors[name] = np.zeros(0)  # in the order of the outputs; filled below
            continue
        # Rows that are not those of images, such as boxes, count alike for all images of a batch.
        parts = []
        for reference_rows, output_rows, count in zip(before, after, counts, strict=True):
            part = _row_errors(reference_rows, output_rows)
            parts.append(part if len(part) == count else np.full(count, part.mean()))
        errors[name] = np.concatenate(parts)
    dense = find_dense_outputs({name: before for name, (before, _) in rows.items()})
    for name, (expected, actual) in rows.items():
        is_dense = name in dense
        errors[name] = (
            dense_errors(dense, name, actual) if is_dense else _row_errors(expected, actual)
        )
    return np.asarray(np.mean(list(errors.values()), axis=0), np.float64)


def weighed_noise_to_signal(
    reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int] = ()
) -> float:
    """Return the noise-to-signal ratio by which changes are accepted.

    If outputs are dense, whose channels differ in scale, it is the mean of the errors of the images.
    """
    if has_dense_output(reference[0]):
        return float(per_image_errors(reference, outputs, images).mean())
    return noise_to_signal(reference, outputs)


def has_dense_output(outputs: Tensors) -> bool:
    """Whether an output has channels at many places, as heads of detectors have."""
    return any(is_dense(array) for array in outputs.values())


def prediction_changes(
    reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int] = ()
) -> ErrorArray:
    """Return 1 for each image whose top class changed, else 0.

    Outputs that are not one row of scores per image change nothing; scores of another shape count
    as changed. `images` is as for `per_image_errors`.
    """
    counts = list(images)
    changes = []
    for name in reference[0]:
        if not all(_are_scores(batch[name]) for batch in reference):
            continue
        sizes = [len(batch[name]) for batch in reference]
        counts = counts or sizes
        if any(counts) and sizes == counts:
            batches = [
                np.argmax(before[name], axis=1) != np.argmax(after[name], axis=1)
                if np.shape(before[name]) == np.shape(after[name])
                else np.ones(len(before[name]), np.bool_)
                for before, after in zip(reference, outputs, strict=True)
            ]
            changes.append(np.concatenate(batches))
    return np.asarray(np.mean(changes, axis=0), np.float64) if changes else np.zeros(1)


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
    """Return the power of the error of all real outputs, relative to the reference unless it is 0."""
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
    log_p = _log_probabilities(reference, reference)
    log_q = _log_probabilities(outputs, reference)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))


def to_probabilities(scores: NDArray[Any]) -> ErrorArray:
    """Return each row as probabilities, which rows that add up to 1 are already."""
    return np.asarray(np.exp(_log_probabilities(scores, scores)))


def _are_scores(array: Any) -> bool:
    shape = np.shape(array)
    return len(shape) == 2 and shape[1] > 1


def _row_errors(reference: NDArray[Any], output: NDArray[Any]) -> ErrorArray:
    rows = reference.shape[0]
    if reference.shape != output.shape:
        return np.full(max(rows, 1), np.inf)
    if not reference.size:
        return np.zeros(max(rows, 1))
    if reference.dtype.kind != "f":
        return np.asarray((reference != output).reshape(rows, -1).mean(axis=1))
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


def _log_probabilities(scores: NDArray[Any], reference: NDArray[Any]) -> ErrorArray:
    """Return the log-softmax of each row; the logarithm where the reference is a Softmax output."""
    scores, sums = scores.astype(np.float64), reference.astype(np.float64).sum(axis=1)
    probable = (reference >= 0).all(axis=1) & (np.abs(sums - 1.0) < 1e-3)
    scores = np.where(probable[:, np.newaxis], np.log(np.maximum(scores, 1e-12)), scores)
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
