from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import TensorSpec
from qconvert.images.preprocess import (
    PRESETS,
    RESAMPLING,
    Interpolation,
    Preprocess,
    find_image_input,
    fit_to_input,
    make_converter,
)
from tests.images.drawn import noise

Convert = Callable[[Image.Image], NDArray[Any]]


def ready(preprocess: Preprocess, shape: tuple[int | str, ...], dtype: str = "float32") -> Convert:
    spec = TensorSpec("x", np.dtype(dtype), shape)
    convert = make_converter(*fit_to_input(preprocess, find_image_input([spec])))
    return lambda image: convert(image, "it.png")


def reference(
    image: Image.Image, preprocess: Preprocess, resize: int, crop: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Do it step by step as torchvision does; return the values and the size of one level."""
    width, height = image.size
    long = int(resize * max(width, height) / min(width, height))
    scaled = (resize, long) if width <= height else (long, resize)
    image = image.resize(scaled, RESAMPLING[preprocess.interpolation])
    left, top = round((scaled[0] - crop) / 2), round((scaled[1] - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)))
    mean, std = np.float32(preprocess.mean), np.float32(preprocess.std)  # type: ignore[arg-type]
    done = (pixels.astype(np.float32) / np.float32(preprocess.divisor) - mean) / std
    return done.transpose(2, 0, 1), np.broadcast_to(1 / (preprocess.divisor * std), 3)


@settings(deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    crop=st.integers(1, 40),
    more=st.integers(0, 12),
)
def test_any_picture_comes_out_as_from_torchvisions_steps_within_two_levels(
    width: int, height: int, crop: int, more: int
) -> None:
    preprocess = replace(PRESETS["imagenet"], resize=crop + more, crop=crop)
    image = noise(width, height, seed=width)
    got = ready(preprocess, ("N", 3, crop, crop))(image)
    wanted, level = reference(image, preprocess, crop + more, crop)
    assert np.all(np.abs(got - wanted) <= 2.001 * level[:, None, None])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_without_resizing_the_values_are_torchvisions_bit_for_bit(preset: str) -> None:
    image = noise(32, 32)
    got = ready(Preprocess.from_dict({**PRESETS[preset].to_dict(), "resize": 32}), (1, 3, 24, 24))
    wanted, _ = reference(image, PRESETS[preset], 32, 24)
    assert np.array_equal(got(image), wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "box"])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (230, 900)])
def test_the_mean_difference_to_resizing_the_whole_picture_is_below_half_a_level(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    smooth = noise(12, 9).resize(size, Image.Resampling.BICUBIC)
    preprocess = replace(PRESETS["raw"], interpolation=interpolation)
    got = ready(preprocess, (1, 3, 224, 224))(smooth)
    wanted, _ = reference(smooth, preprocess, 256, 224)
    assert np.abs(got - wanted).mean() < 0.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lite0_pixels_become_x_minus_127_over_128(dtype: str) -> None:
    preprocess = Preprocess(resize="none", mean=(127 / 255,), std=(128 / 255,))
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    got = ready(preprocess, (1, 1, 16, 16), dtype)
    levels = got(gray)
    assert levels.dtype == np.dtype(dtype)
    assert np.allclose(levels.reshape(-1), (np.arange(256) - 127) / 128, atol=1e-3)


def test_bytes_pass_as_they_are() -> None:
    image = noise(24, 24)
    got = ready(Preprocess(resize="none"), (1, 24, 24, 3), "uint8")(image)
    assert got.dtype == np.uint8
    assert np.array_equal(got, np.asarray(image))


def test_channels_last_and_first_hold_the_same() -> None:
    image = noise(50, 40)
    first = ready(PRESETS["imagenet"], (1, 3, 24, 24))(image)
    last = ready(PRESETS["imagenet"], (1, 24, 24, 3))(image)
    assert np.array_equal(first.transpose(1, 2, 0), last)


def test_bgr_turns_the_channels_round_and_its_mean_is_in_that_order() -> None:
    image = Image.new("RGB", (24, 24), (10, 20, 30))
    bgr = Preprocess(divisor=1, colours="bgr", mean=(30, 20, 10))
    assert not ready(bgr, (1, 3, 24, 24))(image).any()


@pytest.mark.parametrize(
    ("preprocess", "size", "words"),
    [
        (Preprocess(resize="none"), (20, 30), "`it.png` is 20×30; the model takes 24×24"),
        (Preprocess(resize=24, crop="none"), (48, 24), "48×24; the model takes 24×24"),
        (Preprocess(resize=24, crop="none"), (9000, 1), "9000×1, 216000×24 resized"),
    ],
)
def test_a_picture_that_cannot_be_made_to_fit_is_named_with_its_size(
    preprocess: Preprocess, size: tuple[int, int], words: str
) -> None:
    with pytest.raises(QConvertError, match=words):
        ready(preprocess, (1, 3, 24, 24))(Image.new("RGB", size))


def test_a_very_long_picture_costs_no_more_than_what_is_kept_of_it() -> None:
    strip = Image.new("RGB", (60_000, 1), "red")
    assert ready(Preprocess(), (1, 3, 24, 24))(strip).shape == (3, 24, 24)
