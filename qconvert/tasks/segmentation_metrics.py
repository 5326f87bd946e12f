"""Metrics of class maps: mean IoU, mean Dice, pixel accuracy, and how far an engine agrees with FP32.

A picture becomes three counts per class, and all metrics and their intervals are sums of these.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.images.truth import IGNORED_PIXEL
from qconvert.tasks.bootstrap import half_width, resample_counts

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """The pixels of a picture by class: those of the truth, those predicted, and those in both.

    `predicted` may leave out pixels that were predicted to be of no class of the truth; they are
    wrong all the same. `checksum` is that of the prediction.
    """

    truth: Counts
    predicted: Counts
    right: Counts
    checksum: int = 0


@dataclass(frozen=True)
class SegmentationScores:
    """Metrics from 0 to 1; None where no pixel counts.

    `miou` and `dice` are means over the classes that occur in the truth or in a prediction of any
    picture. `class_iou` is by the number of the class, None for a class that does not occur.
    """

    miou: float | None
    pixel_accuracy: float | None
    dice: float | None
    class_iou: tuple[float | None, ...]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The numbers over all classes, by the names that reports use."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "dice": self.dice}


@dataclass(frozen=True)
class PixelAgreement:
    """How many pixels of a picture an engine gives the class that FP32 gives them."""

    equal: int
    pixels: int

    @property
    def share(self) -> float | None:
        """The share of equal pixels; None of an empty picture."""
        return self.equal / self.pixels if self.pixels else None


def confusion_matrix(truth: NDArray[Any], prediction: NDArray[Any], classes: int) -> Counts:
    """Return how many pixels of each class [classes, classes + 1] are predicted to be of which one.

    The last column counts predictions of no class of the truth. Pixels count where the truth is
    not 255 and the prediction is not negative, as it is where a crop cut the picture off.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"a mask of {truth.shape}, but a prediction of {prediction.shape}")
    counting = (truth != IGNORED_PIXEL) & (prediction >= 0)
    rows = truth[counting].astype(np.intp)
    columns = np.minimum(prediction[counting].astype(np.intp), classes)
    if rows.size and rows.max() >= classes:
        raise ValueError(f"the mask has class {rows.max()}, there are {classes}")
    width = classes + 1
    counts = np.bincount(rows * width + columns, minlength=classes * width)
    return counts.reshape(classes, width)


def count_pixels(truth: NDArray[Any], prediction: NDArray[Any], classes: int) -> PixelCounts:
    """Compare a prediction [height, width] of class numbers with the mask of its picture."""
    confusion = confusion_matrix(truth, prediction, classes)
    return PixelCounts(
        confusion.sum(axis=1),
        confusion.sum(axis=0)[:classes],
        np.diagonal(confusion).copy(),
        zlib.crc32(np.ascontiguousarray(prediction, np.int32).tobytes()),
    )


def segmentation_scores(pictures: Sequence[PixelCounts]) -> SegmentationScores:
    """Return the metrics over pictures, which all have the same classes."""
    if not pictures:
        return SegmentationScores(None, None, None, ())
    truth, predicted, right = (
        np.sum([getattr(picture, name) for picture in pictures], axis=0)
        for name in ("truth", "predicted", "right")
    )
    iou = _iou(truth, predicted, right)
    pixels = int(truth.sum())
    return SegmentationScores(
        miou=_mean(iou),
        pixel_accuracy=int(right.sum()) / pixels if pixels else None,
        dice=_mean(_ratio(2 * right, truth + predicted)),
        class_iou=tuple(None if np.isnan(value) else value for value in iou.tolist()),
    )


def paired_interval(
    before: Sequence[PixelCounts], after: Sequence[PixelCounts], resamples: int = 300, seed: int = 0
) -> float | None:
    """Return half the width of the 95 % interval of the change of mIoU over the same pictures.

    It is 1.96 standard deviations of the change over bootstrap resamples: pictures are drawn with
    replacement, and FP32 and the engine are scored on the same draw. Two observations are added,
    one lost and one won, to those of a class in a picture; so the interval has a width where other
    predictions lead to the same mIoU. It is 0 only where all predictions are equal, and None
    without pixels that count.
    """
    truth = np.array([picture.truth for picture in before], np.float64)
    observations = int(np.count_nonzero(truth))
    if not observations:
        return None
    if all(_equal(*pair) for pair in zip(before, after, strict=True)):
        return 0.0
    weights = np.array(list(resample_counts(len(before), resamples, seed)), np.float64)
    means = []
    for pictures in (before, after):
        predicted, right = (
            weights @ np.array([getattr(picture, name) for picture in pictures], np.float64)
            for name in ("predicted", "right")
        )
        means.append([_mean(row) for row in _iou(weights @ truth, predicted, right)])
    changes = [
        new - old for old, new in zip(*means, strict=True) if old is not None and new is not None
    ]
    return half_width(changes, observations)


def pixel_agreement(reference: NDArray[Any], prediction: NDArray[Any]) -> PixelAgreement:
    """Return how many pixels have FP32's class, of those that both predict."""
    counting = (reference >= 0) & (prediction >= 0)
    equal = np.count_nonzero((reference == prediction) & counting)
    return PixelAgreement(int(equal), int(np.count_nonzero(counting)))


def total_agreement(pictures: Sequence[PixelAgreement]) -> float | None:
    """Return the share of equal pixels of all pictures; None without pixels."""
    pixels = sum(picture.pixels for picture in pictures)
    return sum(picture.equal for picture in pictures) / pixels if pixels else None


def _equal(one: PixelCounts, other: PixelCounts) -> bool:
    return one.checksum == other.checksum and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("predicted", "right")
    )


def _iou(truth: NDArray[Any], predicted: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    return _ratio(right, truth + predicted - right)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return part / whole, NaN where the whole is 0."""
    ratio: NDArray[np.float64] = np.divide(
        part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0
    )
    return ratio


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None
