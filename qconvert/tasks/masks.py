"""Heads that give a class to every pixel."""

import numpy as np
from numpy.typing import NDArray

from qconvert.tasks.heads import (
    Arrays,
    Decoder,
    Head,
    MapPlace,
    Option,
    Sample,
    are_probabilities,
    batch_shape,
    map_place,
)

# A map of more channels holds features.
MOST_CLASSES = 256


def class_scores(arrays: Arrays, *, channels_last: bool) -> NDArray[np.int32]:
    """Read scores [N, classes, h, w], or [N, h, w, classes]: the class of the highest.

    A NaN is below every score; a pixel with nothing else has the first class.
    """
    scores = arrays[0]
    if np.isnan(scores).any():
        scores = np.where(np.isnan(scores), -np.inf, scores)
    return np.asarray(np.argmax(scores, axis=3 if channels_last else 1), np.int32)


def class_numbers(arrays: Arrays) -> NDArray[np.int32]:
    """Read the class of each pixel itself, [N, h, w] or with an axis of one channel."""
    numbers = arrays[0]
    axis = 3 if numbers.shape[-1] == 1 and numbers.shape[1] != 1 else 1
    return (numbers.squeeze(axis) if numbers.ndim == 4 else numbers).astype(np.int32)


def foreground(arrays: Arrays, *, threshold: float) -> NDArray[np.int32]:
    """Read one score per pixel: class 1 above the threshold, else 0. A NaN is class 0."""
    return class_numbers([arrays[0] > threshold])


def fit_mask(sample: Sample) -> Head | None:
    """Return how a segmentation is read, decided by these rules.

    It is the one output of [N, h, w] integers, or of three or four axes whose h and w are the
    input's, or both smaller by one factor, of at most 8. More than 256 channels are features, unless
    the user named the decoder. Of several it is the one of the highest resolution, of equals the
    one named `out`, else the first. The channels are the axis that is not of the input's shape,
    the second if both can be. One channel is a probability, above 0.5, if all values are from 0
    to 1, else a logit, above 0.
    """
    fits = {
        name: place
        for name, array in sample.arrays.items()
        if (place := map_place(array, sample.size)) is not None
        and (sample.forced or array.ndim == 3 or _channels(array, place) <= MOST_CLASSES)
    }
    if not fits:
        return None
    name = max(fits, key=lambda name: (fits[name].height, name == "out"))
    array, channels_last = sample.arrays[name], fits[name].channels_last
    channels = _channels(array, fits[name]) if array.ndim == 4 else 1
    text = f"`{name}` {batch_shape(array)}: "
    if channels > 1:
        options: dict[str, Option] = {"channels_last": channels_last}
        text += f"scores of {channels} classes"
        return Head("mask", "class_scores", (name,), text, options, classes=channels)
    if array.dtype.kind in "iu":
        return Head("mask", "class_numbers", (name,), text + "the class of each pixel")
    if array.dtype.kind == "b":
        return Head("mask", "class_numbers", (name,), text + "foreground or not", classes=2)
    cut = 0.5 if are_probabilities(array) else 0.0
    text += f"a {'probability' if cut else 'logit'}, class 1 above {cut:g}"
    return Head("mask", "foreground", (name,), text, {"threshold": cut}, classes=2)


def _channels(array: NDArray[np.generic], place: MapPlace) -> int:
    return int(array.shape[-1 if place.channels_last else 1])


MASK = Decoder(
    "mask",
    "segment",
    "one map: scores [N, C, h, w], one probability or logit per pixel [N, 1, h, w] or [N, h, w], or "
    "classes [N, h, w] of integers, with the shape of the input, at most 8 times smaller",
    fit_mask,
)
