"""Channels side by side: which are shown, and that errors are seen where they are."""

import numpy as np

from qconvert.measure.feature_maps import (
    FIRST_DIFFERENCE,
    FIRST_VALUE,
    GAP,
    TILE,
    TRANSPARENT,
    ZERO_DIFFERENCE,
    draw_montage,
    montage_palette,
    palette_opacity,
    select_channels,
)


def maps() -> np.ndarray:
    made = np.zeros((7, 8, 8), np.float32)
    for channel, strength in enumerate((1, 9, 3, 7, 2, 8, 0.5)):
        made[channel] = strength * (1 + np.arange(64).reshape(8, 8) / 64)
    return made


def test_the_strongest_channels_come_first_and_the_worst_of_the_others_last() -> None:
    exact = maps()
    wrong = exact.copy()
    wrong[6] += 1
    wrong[1] += 5
    assert select_channels(exact, [wrong]) == (1, 5, 3, 2, 6)
    assert select_channels(exact[:2], [wrong[:2]]) == (1, 0, 1)


def test_rows_are_fp32_then_variants_then_their_differences() -> None:
    exact = maps()
    wrong = exact.copy()
    wrong[1, :4] += 2
    drawn = draw_montage(exact, {"int8": wrong, "fp16": exact})
    tall, wide = (5 * (TILE + GAP) - GAP for _ in range(2))
    assert drawn.pixels.shape == (tall, wide)
    rows = [drawn.pixels[at * (TILE + GAP) :][:TILE] for at in range(5)]
    values, differences = rows[:3], rows[3:]
    assert all(row[:, :TILE].max() < FIRST_DIFFERENCE for row in values)
    assert np.array_equal(values[0], values[2])
    first = differences[0][:, :TILE]
    assert (first[: TILE // 2] > FIRST_DIFFERENCE + ZERO_DIFFERENCE).all()
    assert (first[TILE // 2 :] == FIRST_DIFFERENCE + ZERO_DIFFERENCE).all()
    assert (differences[1][:, :TILE] == FIRST_DIFFERENCE + ZERO_DIFFERENCE).all()
    assert (drawn.pixels[TILE : TILE + GAP] == TRANSPARENT).all()


def test_all_values_share_one_scale() -> None:
    drawn = draw_montage(maps(), {"int8": maps()})
    tiles = [drawn.pixels[:TILE, at * (TILE + GAP) :][:, :TILE] for at in range(5)]
    assert tiles[0].max() > tiles[-1].max()
    assert min(tile.min() for tile in tiles) == FIRST_VALUE


def test_maps_that_are_not_square_keep_their_shape() -> None:
    wide = np.random.default_rng(0).random((3, 4, 16)).astype(np.float32)
    tile = draw_montage(wide, {"int8": wide}).pixels[:TILE, :TILE]
    assert (tile[TILE // 4 :] == TRANSPARENT).all()
    assert (tile[: TILE // 4] != TRANSPARENT).all()


def test_the_palette_has_a_colour_for_every_entry() -> None:
    assert len(montage_palette()) == 3 * 256
    assert len(palette_opacity()) == 256
    assert (
        palette_opacity()[FIRST_DIFFERENCE + ZERO_DIFFERENCE]
        < palette_opacity()[FIRST_DIFFERENCE]
        == 255
    )
    assert palette_opacity()[TRANSPARENT] == 0


def test_values_that_are_not_finite_do_not_break_the_picture() -> None:
    broken = maps()
    broken[1, 0, 0] = np.nan
    assert draw_montage(maps(), {"int8": broken}).pixels.dtype == np.uint8
