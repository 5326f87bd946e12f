"""The errors of layers as CSV, for those who want to sort and plot them themselves.

A name that a spreadsheet would compute stands behind a single quote.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from qconvert.measure.layers import Layer
from qconvert.plain import cell

COLUMNS = tuple(each.name for each in fields(Layer))


def layers_csv(layers: Mapping[str, Sequence[Layer]]) -> str:
    """Return a line for each layer of each variant; what is unknown is empty.

    `inf` is the SQNR of equal tensors, `-inf` that of tensors which are not finite.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ("variant", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for variant, found in layers.items():
        for layer in found:
            told = {"variant": variant, **asdict(layer)}
            writer.writerow({k: cell(v) if isinstance(v, str) else v for k, v in told.items()})
    return text.getvalue()
