"""What is kept of every image once an engine has answered: a few numbers, whatever the outputs.

How images are split into batches, and in which order parts are joined, changes nothing but the last
bits of KL, whose exponentials a processor rounds by their place in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, output_array
from qconvert.measure.output_error import kl_divergence, to_probabilities

UNKNOWN = -1
TOP_K = 5

# `wanted` and `answer` are the classes that FP32 and the engine say, `NONE` where a value is not
# finite; the ranks are the places of the label among their scores. `signal` and `error` are sums of
# squares. `lead` is how much likelier than the engine's answer FP32 takes its own to be, `new_lead`
# how much likelier the engine takes its answer, both from 0 to 1. What is unknown of an image is
# `NONE` or NaN.
_ROW_TYPE = np.dtype(
    [
        ("label", np.int32),
        ("wanted", np.int32),
        ("answer", np.int32),
        ("wanted_rank", np.int32),
        ("rank", np.int32),
        ("signal", np.float64),
        ("error", np.float64),
        ("cosine", np.float64),
        ("kl", np.float64),
        ("lead", np.float64),
        ("new_lead", np.float64),
        ("fp32_finite", np.bool_),
        ("finite", np.bool_),
    ]
)

ScoreRows = NDArray[np.void]
OutputRows = NDArray[np.float64]


@dataclass(frozen=True)
class ImageScores:
    """One row an image; `classes` is 0 where no output is a row of scores."""

    rows: ScoreRows
    classes: int
    notes: tuple[str, ...] = ()


def score_batch(wanted: Tensors, got: Tensors, labels: Sequence[int | None]) -> ImageScores:
    """Hold an engine's outputs of a batch against those of FP32; one label an image, or None."""
    count = len(labels)
    if not count:
        raise ValueError("a batch has at least one image")
    pairs, notes = _pairs(wanted, got, count)
    rows = np.zeros(count, _ROW_TYPE)
    for name in ("label", "wanted", "answer", "wanted_rank", "rank"):
        rows[name] = UNKNOWN
    for name in ("kl", "lead", "new_lead"):
        rows[name] = np.nan
    real = [pair for name, pair in pairs.items() if np.asarray(wanted[name]).dtype.kind in "fV"]
    # The number of a class is no quantity: where there is anything real, that is compared.
    _compare(rows, real or list(pairs.values()))
    scores = [name for name, array in wanted.items() if name in pairs and is_class_scores(array)]
    if not scores:
        return ImageScores(rows, 0, notes)
    if len(scores) > 1:
        notes = (*notes, f"of {len(scores)} outputs with scores the first, `{scores[0]}`, counts")
    before, after = pairs[scores[0]]
    rows["label"] = _label_array(labels, before.shape[1])
    _classify(rows, before, after)
    return ImageScores(rows, before.shape[1], notes)


def join_scores(parts: Iterable[ImageScores]) -> ImageScores:
    """Return all parts of a run over images as one."""
    each = list(parts)
    if not each:
        raise ValueError("no images were judged")
    notes = dict.fromkeys(note for part in each for note in part.notes)
    rows = np.concatenate([part.rows for part in each])
    if len({part.classes for part in each}) > 1:
        # As many numbers as an image has things in it: no row of scores of classes after all.
        for name in ("label", "wanted", "answer", "wanted_rank", "rank"):
            rows[name] = UNKNOWN
        for name in ("kl", "lead", "new_lead"):
            rows[name] = np.nan
        return ImageScores(rows, 0, tuple(notes))
    return ImageScores(rows, each[0].classes, tuple(notes))


def _pairs(
    wanted: Tensors, got: Tensors, count: int
) -> tuple[dict[str, tuple[OutputRows, OutputRows]], tuple[str, ...]]:
    """Return each output of both as one row an image; a note for each that is no such thing."""
    pairs, notes = {}, []
    for name in wanted:
        before = output_array(wanted, name)
        after = output_array(got, name) if name in got else None
        if after is None:
            notes.append(f"output `{name}` is missing: not compared")
        elif before.dtype.kind in "OSTU":
            notes.append(f"output `{name}` holds no numbers: not compared")
        elif before.ndim == 0 or before.shape[0] != count:
            notes.append(f"output `{name}` does not have a row for each image: not compared")
        elif before.shape != after.shape:
            notes.append(f"output `{name}` has another shape than that of FP32: not compared")
        else:
            pairs[name] = (_flat(before), _flat(after))
    return pairs, tuple(notes)


def _flat(array: NDArray[Any]) -> OutputRows:
    return array.astype(np.float64).reshape(array.shape[0], -1)


def is_class_scores(array: NDArray[Any]) -> bool:
    """Whether an output is [images, classes], if need be with ones behind, and not of integers."""
    rows = array.ndim >= 2 and array.shape[1] > 1 and all(size == 1 for size in array.shape[2:])
    return rows and array.dtype.kind not in "iub"


def _compare(rows: ScoreRows, pairs: Sequence[tuple[OutputRows, OutputRows]]) -> None:
    """Fill in what compares all outputs of an image, taken as one long vector."""
    rows["fp32_finite"] = _all_finite(rows, [before for before, _ in pairs])
    rows["finite"] = _all_finite(rows, [after for _, after in pairs])
    fine = rows["fp32_finite"] & rows["finite"] & bool(pairs)
    product, power = np.zeros(len(rows)), np.zeros(len(rows))
    for before, after in pairs:
        a, b = before[fine], after[fine]
        rows["signal"][fine] += np.square(a).sum(axis=1)
        rows["error"][fine] += np.square(a - b).sum(axis=1)
        product[fine] += (a * b).sum(axis=1)
        power[fine] += np.square(b).sum(axis=1)
    lengths = np.sqrt(rows["signal"]) * np.sqrt(power)
    # A vector of zeros has no direction: it is like another one, and unlike all else.
    both_zero = (rows["signal"] == 0) & (power == 0)
    cosine = np.divide(product, lengths, out=both_zero.astype(np.float64), where=lengths > 0)
    rows["cosine"] = np.clip(cosine, -1.0, 1.0)
    for name in ("signal", "error", "cosine"):
        rows[name][~fine] = np.nan


def _all_finite(rows: ScoreRows, arrays: Sequence[OutputRows]) -> NDArray[np.bool_]:
    fine = np.ones(len(rows), np.bool_)
    for each in arrays:
        fine &= np.isfinite(each).all(axis=1)
    return fine


def _classify(rows: ScoreRows, before: OutputRows, after: OutputRows) -> None:
    """Fill in what only rows of scores have."""
    labelled = rows["label"] != UNKNOWN
    for scores, said, rank in ((before, "wanted", "wanted_rank"), (after, "answer", "rank")):
        fine = np.isfinite(scores).all(axis=1)
        rows[said][fine] = scores[fine].argmax(axis=1)
        there = fine & labelled
        rows[rank][there] = _ranks(scores[there], rows["label"][there])
    both = (rows["wanted"] != UNKNOWN) & (rows["answer"] != UNKNOWN)
    rows["kl"][both] = _kl_divergences(before[both], after[both])
    for name, scores, ours, other in (
        ("lead", before, "wanted", "answer"),
        ("new_lead", after, "answer", "wanted"),
    ):
        likely = to_probabilities(scores[both])
        places = np.arange(len(likely))
        rows[name][both] = likely[places, rows[ours][both]] - likely[places, rows[other][both]]


def _ranks(scores: OutputRows, labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return how many classes come before the label; of equal scores the first class does.

    Integers tie often, and so counted, rank 0 is the class that `argmax` gives.
    """
    own = np.take_along_axis(scores, labels[:, np.newaxis].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, np.newaxis]
    before: NDArray[np.int64] = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return before


def _kl_divergences(wanted: OutputRows, got: OutputRows) -> OutputRows:
    """Return the KL divergence of each row, which its neighbours do not change.

    What FP32 gives decides whether a row is probabilities or scores. `divergence` asks that of all
    rows at once, so either kind is handed over in a form that it takes for nothing else.
    """
    far = np.zeros(len(wanted))
    likely = (wanted >= 0).all(axis=1) & np.isclose(wanted.sum(axis=1), 1.0, atol=1e-3)
    if likely.any():
        # Rounded probabilities no longer add up to 1, and none at all say nothing.
        shares = np.maximum(got[likely], 0)
        shares[~shares.any(axis=1)] = 1
        far[likely] = kl_divergence(wanted[likely], shares / shares.sum(axis=1, keepdims=True))
    if not likely.all():
        # A shift of all scores of a row means nothing, and below zero are no probabilities.
        below = [each[~likely] - each[~likely].max(axis=1, keepdims=True) for each in (wanted, got)]
        far[~likely] = kl_divergence(below[0], below[1])
    return far


def _label_array(labels: Sequence[int | None], classes: int) -> NDArray[np.int64]:
    """Return the labels as numbers, or refuse one that the model does not have."""
    for label in labels:
        if label is not None and not 0 <= label < classes:
            raise QConvertError(
                f"label {label} is no class of the model, which has {classes}, counted from 0",
                hint="labels are places in the model's own order of classes; give them with "
                "`--labels FILE`, or put a `classes.txt` beside the class folders",
            )
    return np.asarray([UNKNOWN if label is None else label for label in labels], np.int64)
