"""Reduce the outputs of a batch to a few numbers per image, whatever the outputs are.

Neither the split into batches nor the order of the parts changes them, but for the last bits of KL,
whose exponentials a processor rounds by their place in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, output_array
from qconvert.measure.output_error import ErrorArray, kl_divergence, to_probabilities

UNKNOWN = -1
TOP_K = 5

# The classes are those that FP32 and the engine predict, the ranks the positions of the label among
# their scores, 0 for the best. `signal` and `error` are sums of squares. `lead` is how much likelier
# FP32 takes its own prediction to be than the engine's, and `new_lead` how much likelier the engine
# takes its own to be than FP32's, both from 0 to 1.
_INTEGER_FIELDS = ("label", "fp32_class", "engine_class", "fp32_rank", "engine_rank")
_CLASS_NUMBERS = ("kl", "lead", "new_lead")
_ROW_TYPE = np.dtype(
    [
        *((name, np.int32) for name in _INTEGER_FIELDS),
        *((name, np.float64) for name in ("signal", "error", "cosine", *_CLASS_NUMBERS)),
        ("fp32_finite", np.bool_),
        ("engine_finite", np.bool_),
    ]
)

ScoreRows = NDArray[np.void]


@dataclass(frozen=True)
class ImageScores:
    """One row per image; `classes` is 0 where no output is a row of class scores.

    A value that an image does not have is `UNKNOWN` or NaN: no label, or outputs that are not
    finite.
    """

    rows: ScoreRows
    classes: int
    notes: tuple[str, ...] = ()


def score_batch(reference: Tensors, outputs: Tensors, labels: Sequence[int | None]) -> ImageScores:
    """Compare an engine's outputs of a batch with those of FP32; one label per image, or None."""
    count = len(labels)
    if not count:
        raise ValueError("a batch has at least one image")
    pairs, notes = _pair_outputs(reference, outputs, count)
    rows = np.zeros(count, _ROW_TYPE)
    _clear_class_fields(rows)
    real = [pair for name, pair in pairs.items() if np.asarray(reference[name]).dtype.kind in "fV"]
    # A class number is not a quantity: real outputs are compared where there are any.
    _compare(rows, real or list(pairs.values()))
    scores = [name for name, array in reference.items() if name in pairs and is_class_scores(array)]
    if not scores:
        return ImageScores(rows, 0, tuple(notes))
    if len(scores) > 1:
        notes.append(f"of {len(scores)} outputs with scores the first, `{scores[0]}`, counts")
    before, after = pairs[scores[0]]
    rows["label"] = _label_array(labels, before.shape[1])
    _classify(rows, before, after)
    return ImageScores(rows, before.shape[1], tuple(notes))


def join_scores(parts: Iterable[ImageScores]) -> ImageScores:
    """Return all parts of a run over images as one."""
    parts = list(parts)
    if not parts:
        raise ValueError("no images were scored")
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    rows = np.concatenate([part.rows for part in parts])
    if len({part.classes for part in parts}) > 1:
        # As many scores as an image has objects: not a row of class scores after all.
        _clear_class_fields(rows)
        return ImageScores(rows, 0, notes)
    return ImageScores(rows, parts[0].classes, notes)


def is_class_scores(array: NDArray[Any]) -> bool:
    """Whether an output is real and of shape [images, classes], trailing ones allowed."""
    rows = array.ndim >= 2 and array.shape[1] > 1 and all(size == 1 for size in array.shape[2:])
    return rows and array.dtype.kind not in "iub"


def _clear_class_fields(rows: ScoreRows) -> None:
    for name in _INTEGER_FIELDS:
        rows[name] = UNKNOWN
    for name in _CLASS_NUMBERS:
        rows[name] = np.nan


def _pair_outputs(
    reference: Tensors, outputs: Tensors, count: int
) -> tuple[dict[str, tuple[ErrorArray, ErrorArray]], list[str]]:
    """Return each output of both as one row per image, and notes on outputs not compared."""
    pairs: dict[str, tuple[ErrorArray, ErrorArray]] = {}
    notes = []
    for name in reference:
        before = output_array(reference, name)
        after = output_array(outputs, name) if name in outputs else None
        if after is None:
            notes.append(f"output `{name}` is missing: not compared")
        elif before.dtype.kind in "OSTU":
            notes.append(f"output `{name}` is not numeric: not compared")
        elif before.ndim == 0 or before.shape[0] != count:
            notes.append(f"output `{name}` does not have a row for each image: not compared")
        elif before.shape != after.shape:
            notes.append(f"output `{name}` has another shape than that of FP32: not compared")
        else:
            pairs[name] = (
                before.astype(np.float64).reshape(count, -1),
                after.astype(np.float64).reshape(count, -1),
            )
    return pairs, notes


def _compare(rows: ScoreRows, pairs: Sequence[tuple[ErrorArray, ErrorArray]]) -> None:
    """Fill in the fields that compare all outputs of an image, taken as one long vector."""
    rows["fp32_finite"] = rows["engine_finite"] = True
    for before, after in pairs:
        rows["fp32_finite"] &= np.isfinite(before).all(axis=1)
        rows["engine_finite"] &= np.isfinite(after).all(axis=1)
    finite = rows["fp32_finite"] & rows["engine_finite"] & bool(pairs)
    product, power = np.zeros(len(rows)), np.zeros(len(rows))
    for before, after in pairs:
        expected, actual = before[finite], after[finite]
        rows["signal"][finite] += np.square(expected).sum(axis=1)
        rows["error"][finite] += np.square(expected - actual).sum(axis=1)
        product[finite] += (expected * actual).sum(axis=1)
        power[finite] += np.square(actual).sum(axis=1)
    lengths = np.sqrt(rows["signal"]) * np.sqrt(power)
    # A zero vector has no direction: it equals another one, and is orthogonal to all else.
    both_zero = (rows["signal"] == 0) & (power == 0)
    cosine = np.divide(product, lengths, out=both_zero.astype(np.float64), where=lengths > 0)
    rows["cosine"] = np.clip(cosine, -1.0, 1.0)
    for name in ("signal", "error", "cosine"):
        rows[name][~finite] = np.nan


def _classify(rows: ScoreRows, before: ErrorArray, after: ErrorArray) -> None:
    """Fill in the fields of rows of class scores."""
    labelled = rows["label"] != UNKNOWN
    for scores, prefix in ((before, "fp32"), (after, "engine")):
        finite = np.isfinite(scores).all(axis=1)
        rows[f"{prefix}_class"][finite] = scores[finite].argmax(axis=1)
        ranked = finite & labelled
        rows[f"{prefix}_rank"][ranked] = _ranks(scores[ranked], rows["label"][ranked])
    both = (rows["fp32_class"] != UNKNOWN) & (rows["engine_class"] != UNKNOWN)
    rows["kl"][both] = kl_divergence(before[both], after[both])
    for name, scores, own, other in (
        ("lead", before, "fp32_class", "engine_class"),
        ("new_lead", after, "engine_class", "fp32_class"),
    ):
        probabilities = to_probabilities(scores[both])
        images = np.arange(len(probabilities))
        of_own, of_other = (probabilities[images, rows[field][both]] for field in (own, other))
        rows[name][both] = of_own - of_other


def _ranks(scores: ErrorArray, labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return how many classes come before the label; of equal scores the first class does.

    Integer scores tie often; so counted, rank 0 is the class that `argmax` gives.
    """
    own = np.take_along_axis(scores, labels[:, np.newaxis].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, np.newaxis]
    ranks: NDArray[np.int64] = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return ranks


def _label_array(labels: Sequence[int | None], classes: int) -> NDArray[np.int64]:
    """Return the labels as numbers; a label that the model does not have is an error."""
    for label in labels:
        if label is not None and not 0 <= label < classes:
            raise QConvertError(
                f"label {label} is not a class of the model, which has {classes}, counted from 0",
                hint="labels are indices in the model's own order of classes; give them with "
                "`--labels FILE`, or put a `classes.txt` beside the class folders",
            )
    return np.asarray([UNKNOWN if label is None else label for label in labels], np.int64)
