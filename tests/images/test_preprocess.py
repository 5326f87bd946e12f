import json
import tomllib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images.preprocess import PRESETS, Preprocess, find_image_input, fit_to_input

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
def test_settings_survive_toml_and_json(preprocess: Preprocess) -> None:
    through_toml = tomllib.loads(tomli_w.dumps(preprocess.to_dict()))
    through_json = json.loads(json.dumps(preprocess.to_dict()))
    assert Preprocess.from_dict(through_toml) == preprocess
    assert Preprocess.from_dict(through_json) == preprocess


@pytest.mark.parametrize(
    ("given", "word"),
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
        ({"resize": "big"}, "resize: "),
    ],
)
def test_nonsense_is_refused_with_the_setting_named(given: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as refused:
        Preprocess.from_dict(given)
    assert word in " ".join(refused.value.details)
    assert "`crop-share`" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("preset", "size", "resize"),
    [("imagenet", 224, 256), ("inception", 299, 342), ("clip", 336, 336), ("unit", 28, 32)],
)
def test_sizes_follow_the_model(preset: str, size: int, resize: int) -> None:
    settled = fitted(PRESETS[preset], "N", 3, size, size)
    assert (settled.resize, settled.crop) == (resize, size)


def test_a_model_that_takes_no_square_gets_the_whole_picture() -> None:
    settled = fitted(PRESETS["imagenet"], "N", 3, 224, 320)
    assert (settled.resize, settled.crop) == ((320, 224), "none")


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 64, 96, 3), (1, 1, 28, 28)])
def test_settling_twice_changes_nothing(preset: str, shape: tuple[int, ...]) -> None:
    preprocess = replace(PRESETS[preset], mean=(0.5,), std=(0.5,))
    once = fitted(preprocess, *shape)
    assert fitted(once, *shape) == once


@pytest.mark.parametrize("given", [{"crop": 96}, {"resize": (96, 96)}])
def test_a_model_of_open_size_takes_what_the_user_says(given: dict[str, Any]) -> None:
    spec = TensorSpec("x", np.dtype("float32"), ("N", 3, "h", "w"))
    _, target = fit_to_input(Preprocess(**given), find_image_input([spec]))
    assert (target.width, target.height) == (96, 96)


@pytest.mark.parametrize("given", [{}, {"resize": 256}, {"crop": "none"}, {"resize": "none"}])
def test_a_size_that_nobody_said_is_asked_for(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="height and width of input `x` are not known"):
        fitted(Preprocess(**given), "N", 3, "h", "w")


def test_sizes_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match="makes 200×200 pictures; the model takes 224×224"):
        fitted(Preprocess(crop=200), 1, 3, 224, 224)
    with pytest.raises(UsageError, match="crop of 224 does not fit into resize 128"):
        fitted(Preprocess(resize=128), 1, 3, 224, 224)


def test_bytes_are_not_normalised_and_the_settings_say_so() -> None:
    settled = fitted(PRESETS["imagenet"], 1, 3, 24, 24, dtype="uint8")
    assert (settled.divisor, settled.mean, settled.std) == (1.0, (0.0,), (1.0,))


def test_one_channel_is_gray_and_takes_one_mean() -> None:
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
def test_the_layout_is_read_from_the_shape(
    shape: tuple[int | str, ...], dtype: str, layout: str, channels: int
) -> None:
    target = find_image_input([TensorSpec("x", np.dtype(dtype), shape)])
    assert (target.layout, target.channels) == (layout, channels)


@pytest.mark.parametrize(
    "specs",
    [
        [TensorSpec("x", np.dtype("float32"), (1, 4, 24, 24))],
        [TensorSpec("x", np.dtype("float32"), ("N", "c", "h", "w"))],
        [TensorSpec("x", np.dtype("float32"), (1, 77))],
        [TensorSpec("x", np.dtype("int64"), (1, 3, 24, 24))],
        [TensorSpec(name, np.dtype("float32"), (1, 3, 24, 24)) for name in ("x", "y")],
    ],
)
def test_inputs_that_are_no_pictures_ask_for_arrays(specs: list[TensorSpec]) -> None:
    with pytest.raises(UsageError, match="pictures feed") as refused:
        find_image_input(specs)
    assert "npz" in str(refused.value.hint)
