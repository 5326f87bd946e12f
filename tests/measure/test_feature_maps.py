"""Feature maps: the channels drawn, the location of errors, and the tensors compared."""

import numpy as np
import pytest

from qconvert.graph.passes import infer_shapes
from qconvert.measure.feature_maps import (
    FIRST_DIFFERENCE,
    FIRST_VALUE,
    GAP,
    TILE,
    TRANSPARENT,
    ZERO_DIFFERENCE,
    collect_maps,
    draw_montage,
    make_palette,
)
from tests.models import floats, from_text

HEAD = (
    '<ir_version: 10, opset_import: ["": 20]>\nnet (float[N, 4, 8, 6] x) => (float[N, 4, 8, 6] y)'
)
# A MatMul has its channels last, and its neighbour here inherits that axis.
RELU_SOFTMAX = "{ t = Relu (x) s = Softmax (t) y = Neg (s) }"
WITH_MATMUL = "{ t = Relu (x) s = Softmax (t) m = MatMul (t, w) y = Add (s, m) }"


def maps() -> np.ndarray:
    stack = np.zeros((7, 8, 8), np.float32)
    for channel, strength in enumerate((1, 9, 3, 7, 2, 8, 0.5)):
        stack[channel] = strength * (1 + np.arange(64).reshape(8, 8) / 64)
    return stack


def test_strongest_channels_come_first_and_the_worst_of_the_others_last() -> None:
    exact = maps()
    wrong = exact.copy()
    wrong[6] += 1
    wrong[1] += 5
    assert draw_montage(exact, [wrong])[1] == (1, 5, 3, 2, 6)
    assert draw_montage(exact[:2], [wrong[:2]])[1] == (1, 0, 1)


def test_montage_rows_are_fp32_variants_and_differences() -> None:
    exact = maps()
    wrong = exact.copy()
    wrong[1, :4] += 2
    pixels, _, _ = draw_montage(exact, [wrong, exact])
    tall, wide = (5 * (TILE + GAP) - GAP for _ in range(2))
    assert pixels.shape == (tall, wide)
    rows = [pixels[row * (TILE + GAP) :][:TILE] for row in range(5)]
    values, differences = rows[:3], rows[3:]
    assert all(row[:, :TILE].max() < FIRST_DIFFERENCE for row in values)
    assert np.array_equal(values[0], values[2])
    first = differences[0][:, :TILE]
    assert (first[: TILE // 2] > FIRST_DIFFERENCE + ZERO_DIFFERENCE).all()
    assert (first[TILE // 2 :] == FIRST_DIFFERENCE + ZERO_DIFFERENCE).all()
    assert (differences[1][:, :TILE] == FIRST_DIFFERENCE + ZERO_DIFFERENCE).all()
    assert (pixels[TILE : TILE + GAP] == TRANSPARENT).all()


def test_montage_values_share_one_scale() -> None:
    pixels, _, _ = draw_montage(maps(), [maps()])
    tiles = [pixels[:TILE, column * (TILE + GAP) :][:, :TILE] for column in range(5)]
    assert tiles[0].max() > tiles[-1].max()
    assert min(tile.min() for tile in tiles) == FIRST_VALUE


def test_oblong_maps_keep_their_shape() -> None:
    wide = np.random.default_rng(0).random((3, 4, 16)).astype(np.float32)
    tile = draw_montage(wide, [wide])[0][:TILE, :TILE]
    assert (tile[TILE // 4 :] == TRANSPARENT).all()
    assert (tile[: TILE // 4] != TRANSPARENT).all()


def test_palette_has_a_colour_for_every_entry() -> None:
    colours, opacity = make_palette()
    assert (len(colours), len(opacity)) == (3 * 256, 256)
    assert opacity[FIRST_DIFFERENCE + ZERO_DIFFERENCE] < opacity[FIRST_DIFFERENCE] == 255
    assert opacity[TRANSPARENT] == 0


def test_values_that_are_not_finite_can_be_drawn() -> None:
    broken = maps()
    broken[1, 0, 0] = np.nan
    assert draw_montage(maps(), [broken])[0].dtype == np.uint8


def test_channel_axes_are_those_of_the_float_model() -> None:
    reference, _ = infer_shapes(from_text(f"{HEAD} {RELU_SOFTMAX}"))
    other, _ = infer_shapes(from_text(f"{HEAD} {WITH_MATMUL}", w=floats(6, 6)))
    exact, variants = collect_maps(reference, {"int8": other}, {"x": floats(1, 4, 8, 6)})
    shapes = {name: stack.shape for name, stack in exact.items()}
    assert {name: stack.shape for name, stack in variants["int8"].items()} == shapes
    assert shapes["t"] == (4, 8, 6)


@pytest.mark.parametrize("rank", [2, 3])
def test_network_without_maps_has_no_feature_maps(rank: int) -> None:
    shape = ", ".join(["N", "5", "7"][:rank])
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ t = Relu (x) y = Neg (t) }}"
    model, _ = infer_shapes(from_text(HEAD.partition("net")[0] + text))
    feeds = {"x": floats(*(1, 5, 7)[:rank])}
    assert not collect_maps(model, {"fp16": model}, feeds)[0]
