"""Draw channels of one tensor side by side: in FP32, as variants see them, and how they differ."""

from collections.abc import Mapping, Sequence
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
from qconvert.graph.taps import channel_axis
from qconvert.measure.evidence import FeatureMap, FeatureMapRow
from qconvert.measure.layer_errors import LayerError, worst_layers
from qconvert.measure.output_error import sqnr_from_powers
from qconvert.quantize.cross_layer import scaled_tensors
from qconvert.quantize.plan_files import read_equalization_factors
from qconvert.quantize.shifted_tensors import read_changed_tensors

ChannelMaps = NDArray[np.float32]
PalettePixels = NDArray[np.uint8]

WORST_LAYERS = 3
TILE, GAP = 64, 4
ZOOM = 8.0

# The palette: 128 values, 127 differences around `ZERO_DIFFERENCE`, and the gaps between tiles.
FIRST_VALUE, FIRST_DIFFERENCE, TRANSPARENT = 0, 128, 255
ZERO_DIFFERENCE, MIN_OPACITY = 63, 36
_VALUE_STOPS = ((13, 8, 56), (72, 33, 115), (33, 113, 142), (53, 183, 121), (253, 231, 37))
_LESS, _SAME, _MORE = (60, 125, 235), (128, 128, 128), (225, 65, 50)


def draw_feature_maps(
    reference: ir.Model,
    models: Mapping[str, ir.Model],
    feeds: Tensors,
    layers: Sequence[LayerError],
    folder: Path,
) -> list[FeatureMap]:
    """Draw the maps of one image into PNG files, and return what they show, in network order.

    Drawn are the last tensor of each map size, and those of the layers with the largest errors.
    """
    exact, variants = collect_maps(reference, models, feeds)
    stages = list({maps.shape[1:]: name for name, maps in exact.items()}.values())[:5]
    others = [layer for layer in layers if layer.tensor in exact and layer.tensor not in stages]
    worst = [layer.tensor for layer in worst_layers(others, WORST_LAYERS)]
    reasons = dict.fromkeys(worst, "among the largest errors made")
    reasons |= dict.fromkeys(stages, "the end of a stage")
    values = values_by_name(reference.graph)
    feature_maps = []
    for number, tensor in enumerate(filter(reasons.get, exact)):
        maps, file = exact[tensor], folder / f"{number:02}.png"
        shown = {name: variant[tensor] for name, variant in variants.items()}
        pixels, channels, (low, high) = draw_montage(maps, list(shown.values()))
        drawing = Image.fromarray(pixels, "P")
        colours, opacity = make_palette()
        drawing.putpalette(colours)
        drawing.save(file, optimize=True, transparency=opacity)
        power, node = _sum_of_squares(maps), values[tensor].producer()
        rows = [FeatureMapRow("fp32")]
        for name, variant in shown.items():
            sqnr_db = sqnr_from_powers(power, _sum_of_squares(maps - variant))
            rows.append(FeatureMapRow(name, sqnr_db=sqnr_db))
        rows += [FeatureMapRow(name, difference=True) for name in shown]
        feature_maps.append(
            FeatureMap(
                tensor=tensor,
                node=(node.name or "") if node is not None else "",
                image="",
                picture=file.name,
                channels=channels,
                rows=tuple(rows),
                low=low,
                high=high,
                zoom=ZOOM,
                why=reasons[tensor],
            )
        )
    return feature_maps


def collect_maps(
    reference: ir.Model, models: Mapping[str, ir.Model], feeds: Tensors
) -> tuple[dict[str, ChannelMaps], dict[str, dict[str, ChannelMaps]]]:
    """Return the maps that all models have and that compare: of the reference, and of each model."""
    size = fixed_batch(onnx_io.inputs(reference))
    feeds = pad_batch(feeds, size) if size else feeds
    shared = [comparable_tensors(reference, model) for model in models.values()]
    hidden = {value.name for value in reference.graph.inputs}
    # Equalization scales channels and shifts move grids: these maps differ from the reference's.
    for model in models.values():
        hidden |= scaled_tensors(reference.graph, read_equalization_factors(model))
        hidden |= read_changed_tensors(reference.graph, model)
    values = values_by_name(reference.graph)
    axes = {
        name: channel_axis(values[name]) or 1
        for name in shared[0]
        if name not in hidden and all(name in names for names in shared)
    }
    exact = _channel_maps(reference, axes, feeds)
    axes = {name: axes[name] for name in exact}
    return exact, {name: _channel_maps(model, axes, feeds) for name, model in models.items()}


def _channel_maps(
    model: ir.Model, axes: Mapping[str, int], feeds: Tensors
) -> dict[str, ChannelMaps]:
    """Return the first image's stacks of maps, channels first; `axes` are those of the reference."""
    if not axes:
        return {}
    outputs = open_cpu(expose_tensors(model, list(axes)), keep_qdq=True)(feeds)
    stacks = {}
    for name, axis in axes.items():
        array = np.asarray(outputs[OUTPUT_PREFIX + name], np.float32)
        if array.ndim == 4:
            maps = np.moveaxis(array[0], axis - 1, 0)
            if min(maps.shape[1:]) >= 4:
                stacks[name] = maps
    return stacks


def draw_montage(
    exact: ChannelMaps, variants: Sequence[ChannelMaps]
) -> tuple[PalettePixels, tuple[int, ...], tuple[float, float]]:
    """Draw maps of [channel, height, width] as tiles of palette entries.

    A row for FP32, then the variants, then their differences; all values share one scale,
    differences another. Returns the channels drawn and the ends of the scale, too.
    """
    # The channels with the most energy, and of the others the one with most error.
    energy = _sum_of_squares(exact, (1, 2))
    strongest = np.argsort(-energy, kind="stable")[:4].tolist()
    errors = np.sum([_sum_of_squares(maps - exact, (1, 2)) for maps in variants], axis=0)
    errors = np.nan_to_num(errors, nan=np.inf)
    others = [channel for channel in range(len(exact)) if channel not in strongest] or strongest
    worst = max(others, key=lambda channel: (float(errors[channel]), -channel))
    channels = (*strongest, worst)
    # A few extreme values would leave all others in one colour.
    low, high = np.nanpercentile(exact[list(channels)], (0.5, 99.5)).tolist()
    span = (high - low) or 1.0
    rows = [
        [_tile((maps[channel] - low) / span, FIRST_VALUE, 127) for channel in channels]
        for maps in (exact, *variants)
    ]
    for maps in variants:
        differences = [(maps[index] - exact[index]) / span * ZOOM for index in channels]
        rows.append([_tile((shares + 1) / 2, FIRST_DIFFERENCE, 126) for shares in differences])
    padded = [[np.pad(tile, (0, GAP), constant_values=TRANSPARENT) for tile in row] for row in rows]
    return np.block(padded)[:-GAP, :-GAP], channels, (low, high)


def _tile(shares: NDArray[Any], first: int, last: int) -> PalettePixels:
    """Return a map of shares from 0 to 1 as a tile of palette entries, `last` of them up."""
    height, width = shares.shape
    wide = TILE if width >= height else max(1, round(TILE * width / height))
    tall = TILE if height >= width else max(1, round(TILE * height / width))
    method = Image.Resampling.BOX if max(shares.shape) > TILE else Image.Resampling.NEAREST
    scaled = Image.fromarray(np.nan_to_num(shares).astype(np.float32)).resize((wide, tall), method)
    tile = np.full((TILE, TILE), TRANSPARENT, np.uint8)
    tile[:tall, :wide] = first + np.rint(np.clip(np.asarray(scaled), 0, 1) * last)
    return tile


def _sum_of_squares(array: ChannelMaps, axis: tuple[int, ...] | None = None) -> Any:
    return np.square(array, dtype=np.float64).sum(axis=axis)


def make_palette() -> tuple[list[int], bytes]:
    """Return the colours for Pillow and their opacity: the page shines through small differences."""
    positions, stops = np.linspace(0, 1, 128), np.linspace(0, 1, len(_VALUE_STOPS))
    parts = [np.interp(positions, stops, part) for part in zip(*_VALUE_STOPS, strict=True)]
    values = np.rint(np.stack(parts, axis=1)).astype(int).tolist()
    differences = [_LESS] * ZERO_DIFFERENCE + [_SAME] + [_MORE] * ZERO_DIFFERENCE
    opacity = [
        MIN_OPACITY + round((255 - MIN_OPACITY) * abs(index - ZERO_DIFFERENCE) / ZERO_DIFFERENCE)
        for index in range(127)
    ]
    colours = [part for colour in (*values, *differences, _SAME) for part in colour]
    return colours, bytes([255] * 128 + opacity + [0])
