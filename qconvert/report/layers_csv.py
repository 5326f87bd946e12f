"""The errors of layers as CSV, for those who want to sort and plot them themselves."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from qconvert.measure.layers import Layer

COLUMNS = tuple(each.name for each in fields(Layer))


def layers_csv(layers: Mapping[str, Sequence[Layer]]) -> str:
    """Return a line for each layer of each variant; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("variant", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for variant, found in layers.items():
        for layer in found:
            writer.writerow({"variant": variant, **asdict(layer)})
    return text.getvalue()
