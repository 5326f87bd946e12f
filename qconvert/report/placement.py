"""Where the engines really run, and which operators stayed in float, with the reason."""

from collections import Counter

from qconvert.report.model import Report, Variant
from qconvert.report.reasons import why_not
from qconvert.report.sheet import MISSING, Column, Footnotes, Sheet

MOST_REASONS = 12


def placement(report: Report) -> Sheet:
    """Return the nodes of every engine by provider and by the precision they run in."""
    notes = Footnotes()
    rows = []
    for variant in report.variants:
        by_precision = (
            notes.missing(why_not(variant, "by_precision", "latency"))
            if variant.by_precision is None
            else _counts(variant.by_precision)
        )
        by_provider = (
            _counts(variant.by_provider)
            if variant.by_provider
            else notes.missing(why_not(variant, "by_provider", "latency"))
        )
        rows.append((variant.name, by_provider, by_precision, _quantized(variant)))
    columns = (
        Column("variant"),
        Column("nodes by provider", wrap=True),
        Column("by precision", wrap=True),
        Column("quantized", "right"),
    )
    return Sheet("Where it runs", columns, tuple(rows), notes.texts())


def left(report: Report) -> Sheet:
    """Return a row for every reason why operators were not quantized, the most frequent first."""
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        found = Counter((each.op, each.reason) for each in variant.left)
        for (op, reason), number in found.most_common(MOST_REASONS):
            rows.append((variant.name, op, str(number), reason))
        if len(found) > MOST_REASONS:
            more = f"and {len(found) - MOST_REASONS} more reasons"
            rows.append((variant.name, MISSING, "", more))
    columns = (
        Column("variant"),
        Column("operator"),
        Column("nodes", "right"),
        Column("why", wrap=True),
    )
    return Sheet("Not quantized", columns, tuple(rows))


def _counts(found: dict[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{number} {name.removesuffix('ExecutionProvider')}" for name, number in ordered
    )


def _quantized(variant: Variant) -> str:
    return f"{variant.quantized} of {variant.candidates}" if variant.candidates else ""
