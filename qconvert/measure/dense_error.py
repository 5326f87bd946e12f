"""The error of dense outputs: a row of channels at each place, as heads of detectors have them.

Channels differ in scale, even within one output: boxes are in pixels, scores between 0 and 1, and
in a sum of squares boxes would be all that counts. So the error of a channel is relative to its own
power. Sparse probabilities, as scores of classes are, form one group: a class that no image shows
has hardly any power of its own. And a box matters only where a score says that something is there,
so the errors of other channels are weighted by the largest score at their place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray

# The mean of a channel of scores lies below this: at most places there is nothing.
MAX_MEAN_SCORE = 0.1
# Channels with a smaller share of the largest power count as if they had that.
MIN_POWER_SHARE = 1e-4


@dataclass(frozen=True, eq=False)
class DenseOutput:
    """An output of the reference as [channel, place] of each image, and which channels are scores.

    Images on which it is not finite are zeros, and not `comparable`.
    """

    images: list[FloatArray]
    scores: NDArray[np.bool_]
    comparable: NDArray[np.bool_]

    @property
    def best_scores(self) -> list[FloatArray]:
        """The largest score at each place of each image."""
        return [image[self.scores].max(axis=0) for image in self.images]


def is_dense(array: Any) -> bool:
    """Whether an output has channels at many places: three axes or more, of real numbers."""
    return np.ndim(array) >= 3 and np.asarray(array).dtype.kind == "f" and np.size(array) > 0


def channel_axis(shape: Sequence[int]) -> int:
    """Return the axis of the channels of a dense output.

    Of three axes the shorter one behind the batch, of five or more the last. Images are NCHW
    unless their last axis is much shorter than the others.
    """
    if len(shape) == 3:
        return 1 if shape[1] <= shape[2] else 2
    if len(shape) == 4:
        return 3 if 4 * shape[3] <= min(shape[1], shape[2]) else 1
    return len(shape) - 1


def read_images(array: NDArray[Any]) -> list[FloatArray]:
    """Return the images of a dense output, each as [channel, place]; zeros where it is not finite."""
    rows = np.moveaxis(array, channel_axis(array.shape), 1)
    rows = rows.reshape(*rows.shape[:2], -1)
    return [
        np.asarray(row if np.isfinite(row).all() else np.zeros_like(row), np.float32)
        for row in rows
    ]


def find_dense_outputs(reference: Mapping[str, NDArray[Any]]) -> dict[str, DenseOutput]:
    """Return the dense outputs among those of all images."""
    outputs = {}
    for name, array in reference.items():
        if is_dense(array):
            images = read_images(array)
            low = np.min([image.min(axis=1) for image in images], axis=0)
            high = np.max([image.max(axis=1) for image in images], axis=0)
            mean = np.mean([image.mean(axis=1) for image in images], axis=0)
            scores = (low >= 0) & (high <= 1 + 1e-6) & (mean <= MAX_MEAN_SCORE)
            outputs[name] = DenseOutput(images, scores, _are_finite(array))
    return outputs


def find_scores(outputs: Mapping[str, DenseOutput], name: str) -> str | None:
    """Return the output whose scores weigh another: itself, or one with the same places."""
    own = outputs[name]
    for other in (name, *outputs):
        output = outputs[other]
        same_places = output.images[0].shape[1] == own.images[0].shape[1]
        if output.scores.any() and same_places and len(output.images) == len(own.images):
            return other
    return None


def find_weights(outputs: Mapping[str, DenseOutput], name: str) -> list[FloatArray] | None:
    """Return the best score at each place of an output; None if no scores weigh it."""
    scores = find_scores(outputs, name)
    return None if scores is None else outputs[scores].best_scores


def sum_of_scores(outputs: Mapping[str, NDArray[Any]]) -> float:
    """Return the sum of the squared scores of all images: how much there is to detect in them."""
    dense = find_dense_outputs(outputs).values()
    return sum(
        float(np.square(image[output.scores]).sum()) for output in dense for image in output.images
    )


def dense_errors(
    outputs: Mapping[str, DenseOutput], name: str, array: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the error of each image of a dense output, relative to the power over all images.

    It is the mean over the group of scores and that of all other channels: infinite where it is not
    finite, and zero where the reference is not, which compares with nothing.
    """
    output, weights = outputs[name], find_weights(outputs, name)
    errors, powers = (np.zeros((len(output.images), len(output.scores))) for _ in range(2))
    for index, (expected, actual) in enumerate(zip(output.images, read_images(array), strict=True)):
        weight = np.ones(expected.shape[1]) if weights is None else weights[index]
        if not output.comparable[index]:
            continue
        squares = np.square(expected - actual, dtype=np.float64)
        power = np.square(expected, dtype=np.float64)
        errors[index] = np.where(output.scores, squares.sum(axis=1), squares @ weight)
        powers[index] = np.where(output.scores, power.sum(axis=1), power @ weight)
    groups = []
    if output.scores.any():
        power = powers[:, output.scores].sum(axis=1).mean()
        groups.append(errors[:, output.scores].sum(axis=1) / (power or 1.0))
    if not output.scores.all():
        powers = powers[:, ~output.scores].mean(axis=0)
        powers = np.maximum(powers, MIN_POWER_SHARE * powers.max()) if powers.any() else powers + 1
        groups.append((errors[:, ~output.scores] / powers).mean(axis=1))
    finite = np.where(_are_finite(array), np.mean(groups, axis=0), np.inf)
    return np.where(output.comparable, finite, 0.0)


def _are_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each image whether all values are finite."""
    finite: NDArray[np.bool_] = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return finite
