"""Tables over all variants: what each is worth in one row, and how it kept the limits."""

from qconvert.measure.stats import stats
from qconvert.report import figures, gates, numerals
from qconvert.report.model import Report, Variant
from qconvert.report.sheet import MISSING, Column, Footnotes, Sheet, right

BEST = "◆"


def overview(report: Report) -> Sheet:
    """Return a row a variant: size, latency at its smallest batch, answers, and the best marked."""
    rated = [variant for variant in report.variants if variant.accuracy is not None]
    labelled = not rated or any(_top1(variant) for variant in rated)
    scores = ("top-1", "Δ pp") if labelled else ("agrees", "SQNR dB")
    rows = []
    for variant in report.variants:
        answers = (_top1(variant), _delta(variant)) if labelled else _likeness(variant)
        rows.append(
            (
                variant.name,
                numerals.megabytes(variant.engine.bytes) if variant.engine else MISSING,
                _p50(variant),
                _speed(report, variant),
                *(cell or MISSING for cell in answers),
                _standing(report, variant),
            )
        )
    columns = (
        Column("variant"),
        *right("MB", "p50 ms"),
        Column("speed", "right", rank=1),
        Column(scores[0], "right"),
        Column(scores[1], "right", rank=2),
        Column("gate" if report.gates else ""),
    )
    return Sheet("Variants", columns, tuple(rows))


def limits(report: Report) -> Sheet:
    """Return a row a gate."""
    notes = Footnotes()
    rows = []
    for gate in report.gates:
        value, limit = gates.written(gate)
        mark = notes.mark(gate.why) if gate.why else ""
        result = gates.PASS if gate.passed else gates.FAIL
        rows.append((gate.name, gate.variant, value + mark, limit, result))
    columns = (Column("gate"), Column("variant"), *right("value", "limit"), Column("result"))
    return Sheet("Gates", columns, tuple(rows), notes.texts())


def timings(report: Report) -> Sheet:
    """Return the figures of every latency, a row each."""
    rows = []
    for variant in report.variants:
        for latency in variant.latency:
            if latency.samples_ms:
                found = stats(latency)
                tail = (found.least_ms, found.p95_ms, found.p99_ms)
                median = numerals.ms_with_spread(found.median_ms, found.spread_ms)
                how = (str(latency.batch), latency.where)
                runs = str(len(latency.samples_ms))
                rows.append((variant.name, *how, median, *map(numerals.ms, tail), runs))
    columns = (
        Column("variant"),
        Column("batch", "right"),
        Column("where", rank=2),
        Column("median ms", "right"),
        Column("min", "right", rank=1),
        *(Column(title, "right", rank=3) for title in ("p95", "p99", "runs")),
    )
    return Sheet("Timings", columns, tuple(rows))


def _p50(variant: Variant) -> str:
    latency = figures.headline(variant)
    if latency is None:
        return MISSING
    found = stats(latency)
    return numerals.ms_with_spread(found.median_ms, found.spread_ms)


def _speed(report: Report, variant: Variant) -> str:
    ratio = figures.headline_speedup(report, variant)
    return MISSING if ratio is None else numerals.times(ratio)


def _top1(variant: Variant) -> str:
    accuracy = variant.accuracy
    return "" if accuracy is None or accuracy.top1 is None else numerals.percent(accuracy.top1)


def _delta(variant: Variant) -> str:
    accuracy = variant.accuracy
    if accuracy is None or accuracy.change_pp is None:
        return ""
    return numerals.signed(accuracy.change_pp)


def _likeness(variant: Variant) -> tuple[str, str]:
    accuracy = variant.accuracy
    if accuracy is None:
        return "", ""
    agrees = "" if accuracy.agreement is None else numerals.percent(accuracy.agreement)
    return agrees, "" if accuracy.sqnr_db is None else numerals.decibels(accuracy.sqnr_db)


def _standing(report: Report, variant: Variant) -> str:
    """Say how the limits were kept, and mark the best."""
    kept = figures.passed(report, variant)
    words = "baseline" if variant.precision == "fp32" else ""
    if kept is not None:
        words = gates.PASS if kept else gates.FAIL
    return f"{words} {BEST}".strip() if variant.name == report.best else words
