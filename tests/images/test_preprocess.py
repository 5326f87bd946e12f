import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images.preprocess import (
    PRESETS,
    Interpolation,
    Preprocess,
    find_image_input,
    fit_to_input,
    letterbox_area,
    make_converter,
)
from tests.images.image_folders import noise_image

SIDES = st.integers(1, 2000)
NUMBERS = st.floats(0.001, 1000)
SPECS = st.builds(
    Preprocess,
    resize=st.one_of(SIDES, st.tuples(SIDES, SIDES), st.sampled_from(["fit", "none"])),
    crop=st.sampled_from(["fit", "none", 1]),
    crop_share=st.floats(0.1, 1.0),
    interpolation=st.sampled_from(["bilinear", "bicubic", "box"]),
    divisor=NUMBERS,
    mean=st.one_of(st.tuples(NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS)),
    std=st.one_of(st.tuples(NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS)),
    colours=st.sampled_from(["rgb", "bgr", "gray"]),
)


def fitted(preprocess: Preprocess, *shape: int | str, dtype: str = "float32") -> Preprocess:
    return fit_to_input(preprocess, find_image_input([TensorSpec("x", np.dtype(dtype), shape)]))[0]


@settings(deadline=None)
@given(SPECS)
def test_preprocessing_settings_round_trip_through_toml_and_json(preprocess: Preprocess) -> None:
    through_toml = tomllib.loads(tomli_w.dumps(preprocess.to_dict()))
    through_json = json.loads(json.dumps(preprocess.to_dict()))
    assert Preprocess.from_dict(through_toml) == preprocess
    assert Preprocess.from_dict(through_json) == preprocess


@pytest.mark.parametrize(
    ("invalid", "word"),
    [
        ({"resize": 0}, "start at 1"),
        ({"crop": -1}, "start at 1"),
        ({"resize": 200, "crop": 224}, "does not fit"),
        ({"resize": [300, 100], "crop": 224}, "does not fit"),
        ({"crop-share": 0}, "between 0 and 1"),
        ({"mean": [0.1, 0.2]}, "1 or 3"),
        ({"mean": [float("nan")]}, "finite"),
        ({"std": [0.0]}, "above 0"),
        ({"divisor": 0}, "above 0"),
        ({"interpolation": "nearest"}, "bilinear"),
        ({"colour": "rgb"}, "colour: "),
        ({"resize": "big"}, "resize: `big` is none of fit, none, letterbox"),
        ({"resize": "letterbox:0"}, "`letterbox:0` is none of"),
        ({"resize": "letterbox:64x"}, "`letterbox:64x` is none of"),
        ({"resize": "letterbox", "crop": 64}, "a letterbox is not cropped"),
    ],
)
def test_invalid_preprocessing_setting_is_refused_by_name(
    invalid: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError) as error:
        Preprocess.from_dict(invalid)
    assert word in " ".join(error.value.details)
    assert "`crop-share`" in str(error.value.hint)


@pytest.mark.parametrize(
    ("preset", "size", "resize"),
    [("imagenet", 224, 256), ("inception", 299, 342), ("clip", 336, 336), ("unit", 28, 32)],
)
def test_sizes_follow_the_model(preset: str, size: int, resize: int) -> None:
    fit = fitted(PRESETS[preset], "N", 3, size, size)
    assert (fit.resize, fit.crop) == (resize, size)


def test_model_with_an_oblong_input_gets_the_whole_image() -> None:
    fit = fitted(PRESETS["imagenet"], "N", 3, 224, 320)
    assert (fit.resize, fit.crop) == ((320, 224), "none")


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 64, 96, 3), (1, 1, 28, 28)])
def test_fitting_fitted_preprocessing_changes_nothing(preset: str, shape: tuple[int, ...]) -> None:
    preprocess = replace(PRESETS[preset], mean=(0.5,), std=(0.5,))
    once = fitted(preprocess, *shape)
    assert fitted(once, *shape) == once


@pytest.mark.parametrize("sizes", [{"crop": 96}, {"resize": (96, 96)}])
def test_model_of_free_size_takes_the_size_of_the_settings(sizes: dict[str, Any]) -> None:
    spec = TensorSpec("x", np.dtype("float32"), ("N", 3, "h", "w"))
    _, image_input = fit_to_input(Preprocess(**sizes), find_image_input([spec]))
    assert (image_input.width, image_input.height) == (96, 96)


@pytest.mark.parametrize(
    ("rule", "shape", "resolved"),
    [
        ("letterbox", (64, 96), "letterbox:96x64"),
        ("letterbox:48", ("h", "w"), "letterbox:48x48"),
        ("letterbox:96x64", ("h", 96), "letterbox:96x64"),
    ],
)
def test_letterbox_follows_the_model_or_names_its_size(
    rule: str, shape: tuple[int | str, int | str], resolved: str
) -> None:
    settings = Preprocess.from_dict({"resize": rule})
    fit = fitted(settings, "N", 3, *shape)
    assert (fit.resize, fit.crop) == (resolved, "none")
    assert Preprocess.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit
    with pytest.raises(UsageError, match="makes 20×10 images; the model takes 96×64"):
        fitted(Preprocess.from_dict({"resize": "letterbox:20x10"}), "N", 3, 64, 96)


@pytest.mark.parametrize(("width", "height"), [(200, 50), (50, 200), (9, 7), (64, 48), (3000, 1)])
def test_letterbox_holds_the_whole_image_in_its_middle(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), (250, 20, 130))
    pixels = converter(Preprocess(resize="letterbox"), (1, 48, 64, 3), "uint8")(image)
    area = letterbox_area((width, height), (64, 48))
    assert max(area.width / 64, area.height / 48) == 1
    assert abs(area.width / area.height - width / height) <= width / height / min(
        area.width, area.height
    )
    assert abs(64 - area.width - 2 * area.left) <= 1
    assert abs(48 - area.height - 2 * area.top) <= 1
    inside = np.zeros((48, 64), bool)
    inside[area.top : area.top + area.height, area.left : area.left + area.width] = True
    assert (pixels[inside] == (250, 20, 130)).all()
    assert (pixels[~inside] == 114).all()


@pytest.mark.parametrize("sizes", [{}, {"resize": 256}, {"crop": "none"}, {"resize": "none"}])
def test_model_of_free_size_without_a_setting_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="height and width of input `x` are unknown"):
        fitted(Preprocess(**sizes), "N", 3, "h", "w")


def test_size_unlike_that_of_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match="makes 200×200 images; the model takes 224×224"):
        fitted(Preprocess(crop=200), 1, 3, 224, 224)
    with pytest.raises(UsageError, match="crop of 224 does not fit into resize 128"):
        fitted(Preprocess(resize=128), 1, 3, 224, 224)


def test_uint8_input_is_not_normalized() -> None:
    fit = fitted(PRESETS["imagenet"], 1, 3, 24, 24, dtype="uint8")
    assert (fit.divisor, fit.mean, fit.std) == (1.0, (0.0,), (1.0,))


def test_single_channel_input_is_gray_and_takes_one_mean() -> None:
    assert fitted(Preprocess(mean=(0.5,)), 1, 1, 28, 28).colours == "gray"
    with pytest.raises(UsageError, match="given for 3 channels; input `x` has 1"):
        fitted(PRESETS["imagenet"], 1, 1, 28, 28)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "channels"),
    [
        (("N", 3, 24, 32), "float32", "nchw", 3),
        (("N", 24, 32, 3), "float16", "nhwc", 3),
        ((1, 28, 28, 1), "uint8", "nhwc", 1),
    ],
)
def test_layout_is_inferred_from_the_shape(
    shape: tuple[int | str, ...], dtype: str, layout: str, channels: int
) -> None:
    image_input = find_image_input([TensorSpec("x", np.dtype(dtype), shape)])
    assert (image_input.layout, image_input.channels) == (layout, channels)


IMAGE = TensorSpec("x", np.dtype("float32"), ("N", 3, 24, 32))


@pytest.mark.parametrize(
    "specs",
    [
        [TensorSpec("x", np.dtype("float32"), (1, 4, 24, 24))],
        [TensorSpec("x", np.dtype("float32"), ("N", "c", "h", "w"))],
        [TensorSpec("x", np.dtype("float32"), (1, 77))],
        [TensorSpec("x", np.dtype("int64"), (1, 3, 24, 24))],
        [TensorSpec(name, np.dtype("float32"), (1, 3, 24, 24)) for name in ("x", "y")],
        [IMAGE, TensorSpec("prompt", np.dtype("int64"), ("N", 2))],
        [IMAGE, TensorSpec("image_size", np.dtype("int64"), (2,))],
        [IMAGE, TensorSpec("image_size", np.dtype("bool"), ("N", 2))],
        [TensorSpec("image_size", np.dtype("int64"), ("N", 2))],
    ],
)
def test_input_that_cannot_take_images_asks_for_arrays(specs: list[TensorSpec]) -> None:
    with pytest.raises(UsageError, match="images feed") as error:
        find_image_input(specs)
    assert "npz" in str(error.value.hint)


@pytest.mark.parametrize(
    ("name", "row"),
    [("orig_target_sizes", [32, 24]), ("im_shape", [24, 32]), ("scale_factor", [1, 1])],
)
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_input_for_the_size_of_images_is_fed_that_of_the_input(
    name: str, row: list[int], dtype: str
) -> None:
    size = TensorSpec(name, np.dtype(dtype), ("N", 2))
    for specs in ([IMAGE, size], [size, IMAGE]):
        _, image_input = fit_to_input(Preprocess(), find_image_input(specs))
        feeds = image_input.feeds([np.zeros((3, 24, 32), np.float32)] * 2)
        assert feeds["x"].shape == (2, 3, 24, 32)
        assert feeds[name].tolist() == [row, row]
        assert feeds[name].dtype == dtype
        assert image_input.notes[0].startswith(
            f"`{name}`: fed the size of the network's input, 32×24"
        )


Converter = Callable[[Image.Image], NDArray[Any]]


def converter(
    preprocess: Preprocess, shape: tuple[int | str, ...], dtype: str = "float32"
) -> Converter:
    spec = TensorSpec("x", np.dtype(dtype), shape)
    convert = make_converter(*fit_to_input(preprocess, find_image_input([spec])))
    return lambda image: convert(image, "image.png")


def reference(
    image: Image.Image, preprocess: Preprocess, resize: int, crop: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Prepare an image in the steps of torchvision; return the values and the size of one level."""
    width, height = image.size
    long = int(resize * max(width, height) / min(width, height))
    scaled = (resize, long) if width <= height else (long, resize)
    image = image.resize(scaled, Image.Resampling[preprocess.interpolation.upper()])
    left, top = round((scaled[0] - crop) / 2), round((scaled[1] - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)))
    mean, std = np.float32(preprocess.mean), np.float32(preprocess.std)  # type: ignore[arg-type]
    values = (pixels.astype(np.float32) / np.float32(preprocess.divisor) - mean) / std
    return values.transpose(2, 0, 1), np.broadcast_to(1 / (preprocess.divisor * std), 3)


@settings(deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    crop=st.integers(1, 40),
    more=st.integers(0, 12),
)
def test_pixels_are_within_two_levels_of_those_of_torchvision(
    width: int, height: int, crop: int, more: int
) -> None:
    preprocess = replace(PRESETS["imagenet"], resize=crop + more, crop=crop)
    image = noise_image(width, height, seed=width)
    pixels = converter(preprocess, ("N", 3, crop, crop))(image)
    expected, level = reference(image, preprocess, crop + more, crop)
    assert np.all(np.abs(pixels - expected) <= 2.001 * level[:, None, None])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_pixels_without_resizing_equal_those_of_torchvision(preset: str) -> None:
    image = noise_image(32, 32)
    convert = converter(
        Preprocess.from_dict({**PRESETS[preset].to_dict(), "resize": 32}), (1, 3, 24, 24)
    )
    expected, _ = reference(image, PRESETS[preset], 32, 24)
    assert np.array_equal(convert(image), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "box"])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (230, 900)])
def test_mean_difference_from_resizing_the_whole_image_is_below_half_a_level(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    smooth = noise_image(12, 9).resize(size, Image.Resampling.BICUBIC)
    preprocess = replace(PRESETS["raw"], interpolation=interpolation)
    pixels = converter(preprocess, (1, 3, 224, 224))(smooth)
    expected, _ = reference(smooth, preprocess, 256, 224)
    assert np.abs(pixels - expected).mean() < 0.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pixels_of_efficientnet_lite_become_x_minus_127_over_128(dtype: str) -> None:
    preprocess = Preprocess(resize="none", mean=(127 / 255,), std=(128 / 255,))
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    convert = converter(preprocess, (1, 1, 16, 16), dtype)
    levels = convert(gray)
    assert levels.dtype == np.dtype(dtype)
    assert np.allclose(levels.reshape(-1), (np.arange(256) - 127) / 128, atol=1e-3)


def test_uint8_pixels_are_passed_through() -> None:
    image = noise_image(24, 24)
    pixels = converter(Preprocess(resize="none"), (1, 24, 24, 3), "uint8")(image)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(image))


def test_nhwc_input_holds_the_values_of_nchw() -> None:
    image = noise_image(50, 40)
    first = converter(PRESETS["imagenet"], (1, 3, 24, 24))(image)
    last = converter(PRESETS["imagenet"], (1, 24, 24, 3))(image)
    assert np.array_equal(first.transpose(1, 2, 0), last)


def test_bgr_reverses_the_channels_and_its_mean_is_in_that_order() -> None:
    image = Image.new("RGB", (24, 24), (10, 20, 30))
    bgr = Preprocess(divisor=1, colours="bgr", mean=(30, 20, 10))
    assert not converter(bgr, (1, 3, 24, 24))(image).any()


@pytest.mark.parametrize(
    ("preprocess", "size", "words"),
    [
        (Preprocess(resize="none"), (20, 30), "`image.png` is 20×30; the model takes 24×24"),
        (Preprocess(resize=24, crop="none"), (48, 24), "48×24; the model takes 24×24"),
        (Preprocess(resize=24, crop="none"), (9000, 1), "9000×1, 216000×24 resized"),
    ],
)
def test_image_that_does_not_fit_is_refused_with_its_size(
    preprocess: Preprocess, size: tuple[int, int], words: str
) -> None:
    with pytest.raises(QConvertError, match=words):
        converter(preprocess, (1, 3, 24, 24))(Image.new("RGB", size))


def test_very_long_image_costs_no_more_than_its_crop() -> None:
    strip = Image.new("RGB", (60_000, 1), "red")
    assert converter(Preprocess(), (1, 3, 24, 24))(strip).shape == (3, 24, 24)
