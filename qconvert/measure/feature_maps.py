"""Channels of one tensor side by side: in FP32, as variants see them, and how they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Maps = NDArray[np.float32]
Pixels = NDArray[np.uint8]

STRONGEST = 4
TILE, GAP = 64, 4
ZOOM = 8.0
LEAST_SIDE = 4
# A few values far out would leave all others in one colour.
ENDS = (0.5, 99.5)
# Palette: values from the first entry on, then differences, then what lies between the tiles.
VALUES, DIFFERENCES, NOTHING = 0, 128, 255
_VALUE_STOPS = ((13, 8, 56), (72, 33, 115), (33, 113, 142), (53, 183, 121), (253, 231, 37))
_LESS, _SAME, _MORE = (60, 125, 235), (128, 128, 128), (225, 65, 50)
ZERO, FAINT = 63, 36


@dataclass(frozen=True)
class Montage:
    """Tiles as an indexed picture: a row for FP32, then the variants, then their differences."""

    pixels: Pixels
    channels: tuple[int, ...]
    low: float
    high: float


def montage(exact: Maps, variants: Mapping[str, Maps]) -> Montage:
    """Draw maps of [channel, height, width]; all values share one scale, differences another."""
    channels = shown(exact, list(variants.values()))
    picked = exact[list(channels)]
    low, high = (float(each) for each in np.nanpercentile(picked, ENDS))
    span = (high - low) or 1.0
    rows = [[_tile((each - low) / span, VALUES) for each in picked]]
    for maps in variants.values():
        rows.append([_tile((maps[at] - low) / span, VALUES) for at in channels])
    for maps in variants.values():
        apart = [(maps[at] - exact[at]) / span * ZOOM for at in channels]
        rows.append([_tile((each + 1) / 2, DIFFERENCES) for each in apart])
    return Montage(_joined(rows), channels, low, high)


def shown(exact: Maps, variants: Sequence[Maps]) -> tuple[int, ...]:
    """Return the channels with the most energy, and behind them the one with the largest error."""
    energy = np.square(exact, dtype=np.float64).sum(axis=(1, 2))
    strongest = np.argsort(-energy, kind="stable")[:STRONGEST].tolist()
    errors = [np.square(maps - exact, dtype=np.float64).sum(axis=(1, 2)) for maps in variants]
    apart = np.nan_to_num(np.sum(errors, axis=0), nan=np.inf)
    # Of the others, where there are any, so that five different ones are shown.
    rest = [at for at in range(len(exact)) if at not in strongest] or strongest
    return (*strongest, max(rest, key=lambda at: (float(apart[at]), -at)))


def palette() -> list[int]:
    """Return the colours of a montage, as Pillow takes them."""
    ramp = [_between(_VALUE_STOPS, at / 127) for at in range(128)]
    ramp += [_LESS if at < ZERO else _MORE if at > ZERO else _SAME for at in range(127)]
    return [part for colour in [*ramp, _SAME] for part in colour]


def opacity() -> bytes:
    """Return how opaque each colour is: small differences let the page shine through."""
    apart = [FAINT + round((255 - FAINT) * abs(at - ZERO) / ZERO) for at in range(127)]
    return bytes([255] * 128 + apart + [0])


def _tile(shares: NDArray[Any], first: int) -> Pixels:
    """Return a map of shares from 0 to 1 as a tile of palette entries."""
    height, width = shares.shape
    wide = TILE if width >= height else max(1, round(TILE * width / height))
    tall = TILE if height >= width else max(1, round(TILE * height / width))
    method = Image.Resampling.BOX if max(shares.shape) > TILE else Image.Resampling.NEAREST
    scaled = Image.fromarray(np.nan_to_num(shares).astype(np.float32)).resize((wide, tall), method)
    last = 127 if first == VALUES else 126
    filled = np.full((TILE, TILE), NOTHING, np.uint8)
    entries = first + np.rint(np.clip(np.asarray(scaled), 0, 1) * last)
    filled[:tall, :wide] = entries.astype(np.uint8)
    return filled


def _joined(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    step = TILE + GAP
    whole = np.full((len(rows) * step - GAP, len(rows[0]) * step - GAP), NOTHING, np.uint8)
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            whole[down * step :, across * step :][:TILE, :TILE] = tile
    return whole


def _between(stops: Sequence[tuple[int, int, int]], place: float) -> tuple[int, ...]:
    """Return the colour at a place from 0 to 1 on a ramp."""
    at = min(int(place * (len(stops) - 1)), len(stops) - 2)
    share = place * (len(stops) - 1) - at
    pairs = zip(stops[at], stops[at + 1], strict=True)
    return tuple(round(a + (b - a) * share) for a, b in pairs)
