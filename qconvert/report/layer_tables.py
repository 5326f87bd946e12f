"""Which layers go wrong: as a table in the order of the network, and the worst of them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from qconvert.core import number_format
from qconvert.core.number_format import small_percent
from qconvert.core.sanitize import sanitize_cell
from qconvert.measure.layer_errors import LayerError, layer_label, relative_error
from qconvert.report.model import VariantResult
from qconvert.report.table import TextColumn, TextTable, number_columns, text_bar


def layer_table(found: Sequence[LayerError], title: str = "Layers") -> TextTable:
    """Return a row a layer: what arrives, what it makes alone, and what of that is clipping.

    Beside an infinite error, whose bar is full, the others are drawn as without it.
    """
    largest = max(filter(math.isfinite, map(relative_error, found)), default=0.0)
    rows = [
        (
            layer_label(each),
            each.op,
            each.precision,
            _db_cell(each.arriving_db),
            _db_cell(each.made_db),
            text_bar(_error_fraction(relative_error(each), largest)),
            "" if each.cosine is None else f"{each.cosine:.5f}",
            small_percent(each.clipped),
            small_percent(each.saturated),
        )
        for each in found
    ]
    columns = (
        TextColumn("layer"),
        TextColumn("operator", rank=4),
        TextColumn("in", rank=2),
        *number_columns("arrives dB", "made dB"),
        TextColumn("error made", rank=1),
        TextColumn("cosine", "right", rank=3),
        TextColumn("clipped %", "right", rank=5),
        TextColumn("saturated %", "right", rank=6),
    )
    return TextTable(columns, tuple(rows), title)


def _error_fraction(of: float, largest: float) -> float:
    if math.isinf(of):
        return 1.0
    return of / largest if largest else 0.0


def distinct_layers(variants: Sequence[VariantResult]) -> list[tuple[str, Sequence[LayerError]]]:
    """Return the layers of all variants; those of the same graph once, under all their names."""
    found: dict[Sequence[LayerError], list[str]] = {}
    for each in variants:
        if each.layers:
            found.setdefault(each.layers, []).append(each.name)
    return [(", ".join(names), layers) for layers, names in found.items()]


def _db_cell(value: float | None) -> str:
    return "" if value is None else number_format.decibels(value)


CSV_COLUMNS = tuple(each.name for each in fields(LayerError))


def layers_csv(layers: Mapping[str, Sequence[LayerError]]) -> str:
    """Return a line for each layer of each variant; what is unknown is empty.

    `inf` is the SQNR of equal tensors, `-inf` that of tensors which are not finite.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ("variant", *CSV_COLUMNS), lineterminator="\n")
    writer.writeheader()
    for variant, found in layers.items():
        for layer in found:
            told = {"variant": variant, **asdict(layer)}
            writer.writerow(
                {k: sanitize_cell(v) if isinstance(v, str) else v for k, v in told.items()}
            )
    return text.getvalue()
