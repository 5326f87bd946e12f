"""The time from the file of a picture to its predictions: the table and its notes."""

from collections.abc import Iterator

from qconvert.core import number_format as fmt
from qconvert.core.formats import FORMATS
from qconvert.report import metrics
from qconvert.report.model import Report
from qconvert.report.table import MISSING, Footnotes, TextTable, make_columns, optional_cell


def chain_table(report: Report) -> TextTable:
    """Return the time of each step from the file of a picture to its predictions; maybe no rows."""
    chain = report.chain
    if chain is None:
        return TextTable((), ())
    rows, notes = [], Footnotes()
    for variant in report.variants:
        if variant.name not in chain.network_ms:
            continue
        base = metrics.fp32_variant(report, variant)
        total, ratio = chain.total_ms(variant.name), None
        if base is not None and base.name in chain.network_ms:
            ratio = chain.total_ms(base.name) / total
        steps = (chain.read_ms, chain.prepare_ms, chain.network_ms[variant.name])
        cells = map(fmt.ms, (*steps, chain.decode_ms[variant.name], total))
        rows.append((variant.name, *cells, optional_cell(ratio, fmt.ratio, MISSING)))
    mark = notes.mark("one picture after the other, nothing overlapped")
    titles = ("read", "prepare", "network", "decode", "whole", "speed-up")
    title = f"From file to predictions, ms{mark}"
    return TextTable(make_columns("l", "variant", *titles), rows, title, notes.texts())


def chain_notes(report: Report) -> Iterator[str]:
    """Say how much of the speed-up of the network is left from file to predictions."""
    chain = report.chain
    for variant in report.variants if chain is not None else ():
        base = metrics.fp32_variant(report, variant)
        if chain is None or base is None or variant.precision not in FORMATS:
            continue
        if not {variant.name, base.name} <= chain.network_ms.keys():
            continue
        network = chain.network_ms[base.name] / chain.network_ms[variant.name]
        whole = chain.total_ms(base.name) / chain.total_ms(variant.name)
        yield (
            f"`{variant.name}` makes the network {fmt.ratio(network)} as fast, and the whole chain "
            f"from file to predictions {fmt.ratio(whole)}"
        )
