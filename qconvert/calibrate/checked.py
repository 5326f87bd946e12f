"""The arrays of a calibration file keep every promise that the code makes about them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.calibration import Origin
from qconvert.calibrate.exact_sum import FINE_BITS

# Far above what can be counted, and far below where sums overflow.
LARGEST_COUNT = 1 << 48

Array = NDArray[Any]


def check(origin: Origin, arrays: Mapping[str, Array]) -> None:
    """Raise ValueError for the first array that breaks a promise; their types are right already."""
    done = arrays["done"]
    _require(done.ndim == 1 and _rises(done), "done")
    _require(_between(done, 0, len(origin.images) - 1), "done")
    tensors = len(origin.tensors) if done.size else 0
    _check_images(arrays, (tensors, done.size))
    for name in ("sizes", "key_counts", "channel_counts"):
        _require(arrays[name].shape == (tensors,), name)
        _require(_between(arrays[name], 0, LARGEST_COUNT), name)
    _check_keys(arrays)
    _check_channels(arrays)


def _check_images(arrays: Mapping[str, Array], shape: tuple[int, int]) -> None:
    lows, highs = arrays["lows"], arrays["highs"]
    for name in ("lows", "highs"):
        _require(arrays[name].shape == shape and not np.isinf(arrays[name]).any(), name)
    broken = np.isnan(lows)
    _require(bool(((lows <= highs) | broken).all()), "lows")
    _require(bool((np.isnan(highs) == broken).all()), "highs")


def _check_keys(arrays: Mapping[str, Array]) -> None:
    counts, keys, numbers = arrays["key_counts"], arrays["keys"], arrays["numbers"]
    _require(_joined(counts, keys) and numbers.shape == keys.shape, "keys")
    _require(_between(numbers, 1, LARGEST_COUNT), "numbers")
    # Keys rise within a tensor, and so do keys with the tensor's number in front of all.
    tensors = np.repeat(np.arange(counts.size), counts)
    _require(_rises((tensors << 16) + keys), "keys")


def _check_channels(arrays: Mapping[str, Array]) -> None:
    counts, lows, highs = (arrays[f"channel_{name}"] for name in ("counts", "lows", "highs"))
    _require(_joined(counts, lows) and bool((counts > 0).all()), "channel_counts")
    _require(highs.shape == lows.shape, "channel_highs")
    # A channel of a tensor that was never finite runs from infinity down to minus infinity.
    unseen = np.isposinf(lows) & np.isneginf(highs)
    _require(bool(((lows <= highs) & np.isfinite(highs - lows) | unseen).all()), "channel_lows")
    for name in ("coarse", "fine"):
        _require(arrays[name].shape == lows.shape, name)
    _require(_between(arrays["fine"], 0, (1 << FINE_BITS) - 1), "fine")


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"the numbers in `{name}` are impossible")


def _joined(lengths: Array, joined: Array) -> bool:
    # Summed as Python integers, which do not overflow.
    return joined.ndim == 1 and sum(lengths.tolist()) == joined.size


def _rises(array: Array) -> bool:
    return bool((array[1:] > array[:-1]).all())


def _between(array: Array, low: int, high: int) -> bool:
    return bool(((array >= low) & (array <= high)).all())
