"""Channels of one tensor side by side: in FP32, as variants see them, and how they differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch
from qconvert.graph.error_attribution import (
    OUTPUT_PREFIX,
    comparable_tensors,
    expose_tensors,
    values_by_name,
)
from qconvert.graph.observed_tensors import channel_axis
from qconvert.quantize.cross_layer import scaled_tensors
from qconvert.quantize.plan_files import read_equalization_factors

ChannelMaps = NDArray[np.float32]
PalettePixels = NDArray[np.uint8]

STRONGEST_CHANNELS = 4
TILE, GAP = 64, 4
ZOOM = 8.0
MIN_MAP_SIDE = 4
# A few values far out would leave all others in one colour.
VALUE_PERCENTILES = (0.5, 99.5)
# Palette: values from the first entry on, then differences, then what lies between the tiles.
FIRST_VALUE, FIRST_DIFFERENCE, TRANSPARENT = 0, 128, 255
_VALUE_STOPS = ((13, 8, 56), (72, 33, 115), (33, 113, 142), (53, 183, 121), (253, 231, 37))
_LESS, _SAME, _MORE = (60, 125, 235), (128, 128, 128), (225, 65, 50)
ZERO_DIFFERENCE, MIN_OPACITY = 63, 36


@dataclass(frozen=True)
class Montage:
    """Tiles as an indexed picture: a row for FP32, then the variants, then their differences."""

    pixels: PalettePixels
    channels: tuple[int, ...]
    low: float
    high: float


def draw_montage(exact: ChannelMaps, variants: Mapping[str, ChannelMaps]) -> Montage:
    """Draw maps of [channel, height, width]; all values share one scale, differences another."""
    channels = select_channels(exact, list(variants.values()))
    picked = exact[list(channels)]
    low, high = (float(each) for each in np.nanpercentile(picked, VALUE_PERCENTILES))
    span = (high - low) or 1.0
    rows = [[_tile((each - low) / span, FIRST_VALUE) for each in picked]]
    for maps in variants.values():
        rows.append([_tile((maps[at] - low) / span, FIRST_VALUE) for at in channels])
    for maps in variants.values():
        apart = [(maps[at] - exact[at]) / span * ZOOM for at in channels]
        rows.append([_tile((each + 1) / 2, FIRST_DIFFERENCE) for each in apart])
    return Montage(_join_tiles(rows), channels, low, high)


def select_channels(exact: ChannelMaps, variants: Sequence[ChannelMaps]) -> tuple[int, ...]:
    """Return the channels with the most energy, and behind them the one with the largest error."""
    energy = np.square(exact, dtype=np.float64).sum(axis=(1, 2))
    strongest = np.argsort(-energy, kind="stable")[:STRONGEST_CHANNELS].tolist()
    errors = [np.square(maps - exact, dtype=np.float64).sum(axis=(1, 2)) for maps in variants]
    apart = np.nan_to_num(np.sum(errors, axis=0), nan=np.inf)
    # Of the others, where there are any, so that five different ones are shown.
    rest = [at for at in range(len(exact)) if at not in strongest] or strongest
    return (*strongest, max(rest, key=lambda at: (float(apart[at]), -at)))


def montage_palette() -> list[int]:
    """Return the colours of a montage, as Pillow takes them."""
    ramp = [_interpolate_colour(_VALUE_STOPS, at / 127) for at in range(128)]
    ramp += [
        _LESS if at < ZERO_DIFFERENCE else _MORE if at > ZERO_DIFFERENCE else _SAME
        for at in range(127)
    ]
    return [part for colour in [*ramp, _SAME] for part in colour]


def palette_opacity() -> bytes:
    """Return how opaque each colour is: small differences let the page shine through."""
    apart = [
        MIN_OPACITY + round((255 - MIN_OPACITY) * abs(at - ZERO_DIFFERENCE) / ZERO_DIFFERENCE)
        for at in range(127)
    ]
    return bytes([255] * 128 + apart + [0])


def _tile(shares: NDArray[Any], first: int) -> PalettePixels:
    """Return a map of shares from 0 to 1 as a tile of palette entries."""
    height, width = shares.shape
    wide = TILE if width >= height else max(1, round(TILE * width / height))
    tall = TILE if height >= width else max(1, round(TILE * height / width))
    method = Image.Resampling.BOX if max(shares.shape) > TILE else Image.Resampling.NEAREST
    scaled = Image.fromarray(np.nan_to_num(shares).astype(np.float32)).resize((wide, tall), method)
    last = 127 if first == FIRST_VALUE else 126
    filled = np.full((TILE, TILE), TRANSPARENT, np.uint8)
    entries = first + np.rint(np.clip(np.asarray(scaled), 0, 1) * last)
    filled[:tall, :wide] = entries.astype(np.uint8)
    return filled


def _join_tiles(rows: Sequence[Sequence[PalettePixels]]) -> PalettePixels:
    step = TILE + GAP
    whole = np.full((len(rows) * step - GAP, len(rows[0]) * step - GAP), TRANSPARENT, np.uint8)
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            whole[down * step :, across * step :][:TILE, :TILE] = tile
    return whole


def _interpolate_colour(stops: Sequence[tuple[int, int, int]], place: float) -> tuple[int, ...]:
    """Return the colour at a place from 0 to 1 on a ramp."""
    at = min(int(place * (len(stops) - 1)), len(stops) - 2)
    share = place * (len(stops) - 1) - at
    pairs = zip(stops[at], stops[at + 1], strict=True)
    return tuple(round(a + (b - a) * share) for a, b in pairs)


@dataclass(frozen=True)
class VariantMaps:
    """The maps of one image: of the float model, and of each variant by its name."""

    exact: Mapping[str, ChannelMaps]
    others: Mapping[str, Mapping[str, ChannelMaps]]
    nodes: Mapping[str, str]


def collect_maps(  # noqa: D103, RUF100
    reference: ir.Model, models: Mapping[str, ir.Model], feeds: Tensors
) -> VariantMaps:
    size = fixed_batch(onnx_io.inputs(reference))
    feeds = pad_batch(feeds, size) if size else feeds
    shared = [comparable_tensors(reference, model) for model in models.values()]
    hidden = {value.name for value in reference.graph.inputs}
    # Maps whose channels were divided by factors are others than those of the reference.
    for model in models.values():
        hidden |= scaled_tensors(reference.graph, read_equalization_factors(model))
    tensors = [
        name for name in shared[0] if name not in hidden and all(name in each for each in shared)
    ]
    known = values_by_name(reference.graph)
    axes = {name: channel_axis(known[name]) or 1 for name in tensors}
    exact = dict(_channel_maps(reference, axes, feeds))
    same = {name: axes[name] for name in exact}
    others = {name: dict(_channel_maps(model, same, feeds)) for name, model in models.items()}
    makers = {name: value.producer() for name, value in known.items()}
    nodes = {name: (made.name or "") if made is not None else "" for name, made in makers.items()}
    return VariantMaps(exact, others, nodes)


def _channel_maps(
    model: ir.Model, axes: Mapping[str, int], feeds: Tensors
) -> Iterator[tuple[str, ChannelMaps]]:
    """Yield what the first image makes of each tensor that is a stack of maps, channels first.

    `axes` has the axis of the channels of each, which the neighbours of a rewritten one do not say.
    """
    if not axes:
        return
    answers = open_cpu(expose_tensors(model, list(axes)), keep_qdq=True)(feeds)
    for name, axis in axes.items():
        found = np.asarray(answers[OUTPUT_PREFIX + name], np.float32)
        if found.ndim == 4:
            maps = np.moveaxis(found[0], axis - 1, 0)
            if min(maps.shape[1:]) >= MIN_MAP_SIDE:
                yield name, maps
