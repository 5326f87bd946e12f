"""Draw channels of one tensor side by side: in FP32, as variants see them, and how they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from qconvert.measure.evidence import FeatureMap, FeatureMapRow
from qconvert.measure.layer_errors import LayerError, worst_layers
from qconvert.measure.output_error import sqnr_from_powers
from qconvert.quantize.cross_layer import scaled_tensors
from qconvert.quantize.plan_files import read_equalization_factors

ChannelMaps = NDArray[np.float32]
PalettePixels = NDArray[np.uint8]

MIN_MAP_SIDE = 4
MAX_STAGES = 5
WORST_LAYERS = 3
STRONGEST_CHANNELS = 4
TILE, GAP = 64, 4
ZOOM = 8.0
# A few extreme values would leave all others in one colour.
VALUE_PERCENTILES = (0.5, 99.5)

# The palette: 128 values, 127 differences around `ZERO_DIFFERENCE`, and the gaps between tiles.
FIRST_VALUE, FIRST_DIFFERENCE, TRANSPARENT = 0, 128, 255
ZERO_DIFFERENCE, MIN_OPACITY = 63, 36
_VALUE_STOPS = ((13, 8, 56), (72, 33, 115), (33, 113, 142), (53, 183, 121), (253, 231, 37))
_LESS, _SAME, _MORE = (60, 125, 235), (128, 128, 128), (225, 65, 50)


@dataclass(frozen=True)
class VariantMaps:
    """The maps of one image: of the float model, and of each variant by its name."""

    exact: Mapping[str, ChannelMaps]
    variants: Mapping[str, Mapping[str, ChannelMaps]]
    nodes: Mapping[str, str]


def collect_maps(
    reference: ir.Model, models: Mapping[str, ir.Model], feeds: Tensors
) -> VariantMaps:
    """Return the maps of every tensor that all models have and that compares with the reference."""
    size = fixed_batch(onnx_io.inputs(reference))
    feeds = pad_batch(feeds, size) if size else feeds
    shared = [comparable_tensors(reference, model) for model in models.values()]
    hidden = {value.name for value in reference.graph.inputs}
    # Cross-layer equalization scales channels, whose maps differ from those of the reference.
    for model in models.values():
        hidden |= scaled_tensors(reference.graph, read_equalization_factors(model))
    values = values_by_name(reference.graph)
    axes = {
        name: channel_axis(values[name]) or 1
        for name in shared[0]
        if name not in hidden and all(name in names for names in shared)
    }
    exact = _channel_maps(reference, axes, feeds)
    axes = {name: axes[name] for name in exact}
    variants = {name: _channel_maps(model, axes, feeds) for name, model in models.items()}
    producers = {name: value.producer() for name, value in values.items()}
    nodes = {
        name: (node.name or "") if node is not None else "" for name, node in producers.items()
    }
    return VariantMaps(exact, variants, nodes)


def choose_tensors(
    exact: Mapping[str, ChannelMaps], layers: Sequence[LayerError]
) -> dict[str, str]:
    """Return the tensors to draw, in the order of the network, each with the reason.

    They are the last tensor of each map size, and those of the layers with the largest errors.
    """
    stages = list({maps.shape[1:]: name for name, maps in exact.items()}.values())[:MAX_STAGES]
    others = [layer for layer in layers if layer.tensor in exact and layer.tensor not in stages]
    reasons = {
        layer.tensor: "among the largest errors made"
        for layer in worst_layers(others, WORST_LAYERS)
    }
    reasons |= dict.fromkeys(stages, "the end of a stage")
    return {name: reasons[name] for name in exact if name in reasons}


def draw_feature_map(maps: VariantMaps, tensor: str, why: str, file: Path) -> FeatureMap:
    """Draw the maps of a tensor into an image file, and return what it shows."""
    exact = maps.exact[tensor]
    variants = {name: variant[tensor] for name, variant in maps.variants.items()}
    montage = draw_montage(exact, list(variants.values()))
    image = Image.fromarray(montage.pixels, "P")
    image.putpalette(montage_palette())
    image.save(file, optimize=True, transparency=palette_opacity())
    power = float(np.square(exact, dtype=np.float64).sum())
    rows = [FeatureMapRow("fp32")]
    for name, variant in variants.items():
        error = float(np.square(exact - variant, dtype=np.float64).sum())
        rows.append(FeatureMapRow(name, sqnr_db=sqnr_from_powers(power, error)))
    rows += [FeatureMapRow(name, difference=True) for name in variants]
    return FeatureMap(
        tensor=tensor,
        node=maps.nodes[tensor],
        image="",
        picture=file.name,
        channels=montage.channels,
        rows=tuple(rows),
        low=montage.low,
        high=montage.high,
        zoom=ZOOM,
        why=why,
    )


@dataclass(frozen=True)
class Montage:
    """Tiles as an indexed image: a row for FP32, then the variants, then their differences."""

    pixels: PalettePixels
    channels: tuple[int, ...]
    low: float
    high: float


def draw_montage(exact: ChannelMaps, variants: Sequence[ChannelMaps]) -> Montage:
    """Draw maps of [channel, height, width]; all values share one scale, differences another."""
    channels = select_channels(exact, variants)
    low, high = np.nanpercentile(exact[list(channels)], VALUE_PERCENTILES).tolist()
    span = (high - low) or 1.0
    rows = [
        [_tile((maps[channel] - low) / span, FIRST_VALUE) for channel in channels]
        for maps in (exact, *variants)
    ]
    for maps in variants:
        differences = [(maps[index] - exact[index]) / span * ZOOM for index in channels]
        rows.append([_tile((shares + 1) / 2, FIRST_DIFFERENCE) for shares in differences])
    padded = [[np.pad(tile, (0, GAP), constant_values=TRANSPARENT) for tile in row] for row in rows]
    return Montage(np.block(padded)[:-GAP, :-GAP], channels, low, high)


def select_channels(exact: ChannelMaps, variants: Sequence[ChannelMaps]) -> tuple[int, ...]:
    """Return the channels with the most energy, and of the others the one with most error."""
    energy = np.square(exact, dtype=np.float64).sum(axis=(1, 2))
    strongest = np.argsort(-energy, kind="stable")[:STRONGEST_CHANNELS].tolist()
    errors = np.sum(
        [np.square(maps - exact, dtype=np.float64).sum(axis=(1, 2)) for maps in variants], axis=0
    )
    errors = np.nan_to_num(errors, nan=np.inf)
    others = [channel for channel in range(len(exact)) if channel not in strongest] or strongest
    return (*strongest, max(others, key=lambda channel: (float(errors[channel]), -channel)))


def montage_palette() -> list[int]:
    """Return the colours of a montage, as Pillow takes them."""
    positions, stops = np.linspace(0, 1, 128), np.linspace(0, 1, len(_VALUE_STOPS))
    parts = [np.interp(positions, stops, part) for part in zip(*_VALUE_STOPS, strict=True)]
    values = np.rint(np.stack(parts, axis=1)).astype(int).tolist()
    differences = [_LESS] * ZERO_DIFFERENCE + [_SAME] + [_MORE] * ZERO_DIFFERENCE
    return [part for colour in [*values, *differences, _SAME] for part in colour]


def palette_opacity() -> bytes:
    """Return how opaque each colour is: small differences let the page shine through."""
    differences = [
        MIN_OPACITY + round((255 - MIN_OPACITY) * abs(index - ZERO_DIFFERENCE) / ZERO_DIFFERENCE)
        for index in range(127)
    ]
    return bytes([255] * 128 + differences + [0])


def _channel_maps(
    model: ir.Model, axes: Mapping[str, int], feeds: Tensors
) -> dict[str, ChannelMaps]:
    """Return, for the first image, each tensor that is a stack of maps, channels first.

    `axes` has the channel axis of each in the reference; the neighbours of a rewritten tensor do
    not show it.
    """
    if not axes:
        return {}
    outputs = open_cpu(expose_tensors(model, list(axes)), keep_qdq=True)(feeds)
    stacks = {}
    for name, axis in axes.items():
        array = np.asarray(outputs[OUTPUT_PREFIX + name], np.float32)
        if array.ndim == 4:
            maps = np.moveaxis(array[0], axis - 1, 0)
            if min(maps.shape[1:]) >= MIN_MAP_SIDE:
                stacks[name] = maps
    return stacks


def _tile(shares: NDArray[Any], first: int) -> PalettePixels:
    """Return a map of shares from 0 to 1 as a tile of palette entries."""
    height, width = shares.shape
    wide = TILE if width >= height else max(1, round(TILE * width / height))
    tall = TILE if height >= width else max(1, round(TILE * height / width))
    method = Image.Resampling.BOX if max(shares.shape) > TILE else Image.Resampling.NEAREST
    scaled = Image.fromarray(np.nan_to_num(shares).astype(np.float32)).resize((wide, tall), method)
    last = 127 if first == FIRST_VALUE else 126
    entries = first + np.rint(np.clip(np.asarray(scaled), 0, 1) * last)
    tile = np.full((TILE, TILE), TRANSPARENT, np.uint8)
    tile[:tall, :wide] = entries.astype(np.uint8)
    return tile
