"""The three tables that come first: size, latency, accuracy."""

from collections.abc import Callable
from dataclasses import dataclass

from qconvert.measure.accuracy import Accuracy
from qconvert.measure.stats import stats
from qconvert.report import figures, numerals
from qconvert.report.model import Memory, Report, Variant
from qconvert.report.reasons import why_no_score, why_not
from qconvert.report.sheet import Column, Footnotes, Sheet, right

AGAINST_FILE = "against the FP32 ONNX file: no fp32 engine of this backend was built"
SIMULATED = "answers of the same graph on ONNX Runtime's CPU: the engine does not run here"
FILE = "FP32 ONNX"


def size(report: Report) -> Sheet:
    """Return megabytes on disk and their ratio to fp32, and at work where that was measured."""
    notes = Footnotes()
    memories = [variant.memory for variant in report.variants if variant.memory is not None]
    shown = [name for name in MEMORIES if any(getattr(each, name) is not None for each in memories)]
    rows = [(FILE, numerals.megabytes(report.baseline_bytes), "", *[""] * len(shown))]
    for variant in report.variants:
        cells = _sizes(report, variant, notes)
        at_work = (_memory(variant, name, notes) for name in shown)
        rows.append((variant.name, *cells, *at_work))
    columns = (Column("variant"), *right("MB", "ratio", *(MEMORIES[name] for name in shown)))
    return Sheet("Size", columns, tuple(rows), notes.texts())


MEMORIES = {"peak_rss_bytes": "memory MB", "device_bytes": "device MB"}


def _sizes(report: Report, variant: Variant, notes: Footnotes) -> tuple[str, str]:
    ratio = figures.size_ratio(report, variant)
    if variant.engine is None or ratio is None:
        gone = notes.missing(why_not(variant))
        return gone, gone
    base = figures.reference(report, variant)
    mark = "" if base is not None and base.engine else notes.mark(AGAINST_FILE)
    return numerals.megabytes(variant.engine.bytes), numerals.times(ratio) + mark


def _memory(variant: Variant, name: str, notes: Footnotes) -> str:
    found = getattr(variant.memory or Memory(), name)
    if found is None:
        return notes.missing(why_not(variant, name, "memory"))
    return numerals.megabytes(found)


def latency(report: Report) -> Sheet:
    """Return a row for each engine and batch size; calls with inputs on the device apart."""
    notes = Footnotes()
    device = any(each.where == "device" for variant in report.variants for each in variant.latency)
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        for batch in sorted({each.batch for each in variant.latency if each.samples_ms}):
            rows.append(_timed(report, variant, batch, notes))
        if figures.headline(variant) is None:
            rows.append((variant.name, "", notes.missing(why_not(variant, "latency")), "", "", ""))
    columns = (
        Column("variant"),
        *right("batch", "median ms", "device ms", "images/s", "speed-up"),
    )
    sheet = Sheet("Latency", columns, tuple(rows), notes.texts())
    return sheet if device else without(sheet, "device ms")


def without(sheet: Sheet, title: str) -> Sheet:
    """Return a table that lacks one column."""
    kept = [index for index, column in enumerate(sheet.columns) if column.title != title]
    rows = tuple(tuple(row[index] for index in kept) for row in sheet.rows)
    return Sheet(sheet.title, tuple(sheet.columns[index] for index in kept), rows, sheet.footnotes)


def _timed(report: Report, variant: Variant, batch: int, notes: Footnotes) -> tuple[str, ...]:
    host = figures.timed(variant, batch, "host")
    device = figures.timed(variant, batch, "device")
    found = host or device
    assert found is not None
    timing = stats(found)
    ratio = figures.speedup(report, variant, found)
    return (
        variant.name,
        str(batch),
        numerals.ms_with_spread(timing.median_ms, timing.spread_ms)
        if host
        else notes.missing(why_not(variant, "latency")),
        numerals.ms(stats(device).median_ms) if device else "",
        numerals.rate(timing.images_per_second),
        notes.missing(_no_ratio(report, variant)) if ratio is None else numerals.times(ratio),
    )


def _no_ratio(report: Report, variant: Variant) -> str:
    base = figures.reference(report, variant)
    if base is None:
        return f"no fp32 engine of `{variant.backend}` to compare with"
    return f"`{base.name}` was not timed at this batch size"


@dataclass(frozen=True)
class Score:
    """A column of the accuracy table: its title, the field it stands on, and how it is written."""

    title: str
    name: str
    write: Callable[[Accuracy], str]


def _percent(name: str) -> Callable[[Accuracy], str]:
    return lambda accuracy: numerals.percent(getattr(accuracy, name))


AGREES = Score("agrees", "agreement", _percent("agreement"))
LABELLED = (
    Score("top-1", "top1", _percent("top1")),
    Score("precision", "precision", _percent("precision")),
    Score("recall", "recall", _percent("recall")),
    Score("F1", "f1", _percent("f1")),
    Score("change pp", "change_pp", lambda a: numerals.change(a.change_pp or 0, a.half_width_pp)),
    AGREES,
)
UNLABELLED = (
    AGREES,
    Score("SQNR dB", "sqnr_db", lambda a: numerals.decibels(a.sqnr_db or 0)),
    Score("KL", "kl", lambda a: numerals.divergence(a.kl or 0)),
    Score("cosine", "cosine", lambda a: f"{a.cosine:.5f}"),
)


def accuracy(report: Report) -> Sheet:
    """Return the scores in percent; without labels agreement and the distance of the outputs."""
    notes = Footnotes()
    rated = [each.accuracy for each in report.variants if each.accuracy is not None]
    known = [*rated, report.baseline] if report.baseline is not None else rated
    scores = _worth_showing(known)
    rows = []
    if report.baseline is not None and any(_has(report.baseline, each) for each in scores):
        rows.append((FILE, *(_score(report.baseline, each, "", notes) for each in scores)))
    for variant in report.variants:
        mark = ""
        if variant.accuracy is not None and variant.accuracy.measured_on == "cpu-simulation":
            mark = notes.mark(SIMULATED)
        cells = (_rated(variant, each, notes) for each in scores)
        rows.append((variant.name + mark, *cells))
    title = f"Accuracy{_of_images(known, labelled=scores is LABELLED)}"
    if rated and scores is not LABELLED:
        first = next(each for each in report.variants if each.accuracy is not None)
        title += notes.mark(why_no_score(first, "top1"))
    columns = (Column("variant"), *right(*(each.title for each in scores)))
    return Sheet(title, columns, tuple(rows), notes.texts())


def _of_images(known: list[Accuracy], *, labelled: bool) -> str:
    """Return what the percentages are of; images without a label count for agreement alone."""
    most = max(known, key=lambda each: each.images, default=None)
    if most is None or not most.images:
        return ""
    some = most.labelled if labelled else None
    told = f", % of {numerals.images(most.images, some)}"
    return f"{told} (agrees: of all)" if some and some < most.images else told


def _worth_showing(known: list[Accuracy]) -> tuple[Score, ...]:
    if any(each.top1 is not None for each in known):
        return LABELLED
    found = tuple(score for score in UNLABELLED if any(_has(each, score) for each in known))
    return found or (LABELLED[0], AGREES)


def _has(accuracy: Accuracy, score: Score) -> bool:
    return getattr(accuracy, score.name) is not None


def _score(accuracy: Accuracy, score: Score, why: str, notes: Footnotes) -> str:
    if _has(accuracy, score):
        return score.write(accuracy)
    return notes.missing(why) if why else ""


def _rated(variant: Variant, score: Score, notes: Footnotes) -> str:
    why = why_no_score(variant, score.name)
    if variant.accuracy is None:
        return notes.missing(why)
    return _score(variant.accuracy, score, why, notes)
