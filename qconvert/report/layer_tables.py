"""The errors of layers: a table in the order of the network, and a CSV file to sort and plot."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from qconvert.core import number_format as fmt
from qconvert.core.sanitize import sanitize_cell
from qconvert.measure.layer_errors import LayerError, layer_label, relative_error
from qconvert.report.model import VariantResult
from qconvert.report.table import TextColumn, TextTable, number_columns, optional_cell, text_bar

CSV_COLUMNS = tuple(field.name for field in fields(LayerError))


def layer_table(layers: Sequence[LayerError], title: str = "Layers") -> TextTable:
    """Return a row for each layer: the error that arrives, its own, and how much is clipping.

    The bars compare the finite errors; an infinite one has a full bar.
    """
    errors = [relative_error(layer) for layer in layers]
    largest = max(filter(math.isfinite, errors), default=0.0) or 1.0
    rows = [
        (
            layer_label(layer),
            layer.op,
            layer.precision,
            optional_cell(layer.arriving_db, fmt.decibels),
            optional_cell(layer.made_db, fmt.decibels),
            text_bar(error / largest),
            optional_cell(layer.cosine, "{:.5f}".format),
            fmt.small_percent(layer.clipped),
            fmt.small_percent(layer.saturated),
        )
        for layer, error in zip(layers, errors, strict=True)
    ]
    columns = (
        TextColumn("layer"),
        TextColumn("operator", rank=4),
        TextColumn("in", rank=2),
        *number_columns("arrives dB", "made dB"),
        TextColumn("error made", rank=1),
        *number_columns("cosine", rank=3),
        *number_columns("clipped %", rank=5),
        *number_columns("saturated %", rank=6),
    )
    return TextTable(columns, rows, title)


def distinct_layers(variants: Sequence[VariantResult]) -> list[tuple[str, Sequence[LayerError]]]:
    """Return the layers of all variants; those of equal graphs once, under all their names."""
    names: dict[Sequence[LayerError], list[str]] = {}
    for variant in variants:
        if variant.layers:
            names.setdefault(variant.layers, []).append(variant.name)
    return [(", ".join(same), layers) for layers, same in names.items()]


def layers_csv(layers: Mapping[str, Sequence[LayerError]]) -> str:
    """Return a line for each layer of each variant; what is unknown is empty.

    `inf` is the SQNR of equal tensors, `-inf` that of tensors which are not finite. A name that a
    spreadsheet would compute is quoted.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ("variant", *CSV_COLUMNS), lineterminator="\n")
    writer.writeheader()
    for variant, errors in layers.items():
        for error in errors:
            row = {"variant": variant, **asdict(error)}
            writer.writerow(
                {
                    key: sanitize_cell(value) if isinstance(value, str) else value
                    for key, value in row.items()
                }
            )
    return text.getvalue()
