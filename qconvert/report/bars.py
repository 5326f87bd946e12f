"""Short charts of one figure a variant: bars with whiskers, as places from 0 to 100 on a track."""

from dataclasses import dataclass

from qconvert.measure.stats import stats
from qconvert.report import figures, numerals
from qconvert.report.model import Report, Variant
from qconvert.report.sheet import MISSING


@dataclass(frozen=True)
class Bar:
    """A bar from `start` over `length` percent of the track; a whisker where there is a spread."""

    name: str
    text: str
    precision: str
    start: float = 0.0
    length: float = 0.0
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bars:
    """A chart; `zero` is where the track has its zero, if that is not its left end."""

    title: str
    bars: tuple[Bar, ...]
    zero: float | None = None


@dataclass(frozen=True)
class _Value:
    value: float
    text: str
    spread: float = 0.0


_Values = dict[str, _Value]


def charts(report: Report) -> tuple[Bars, ...]:
    """Return size, latency, and change of the answers, all in one order; none that nobody has."""
    found = (_sizes(report), _latencies(report), _changes(report))
    return tuple(each for each in found if each is not None)


def _sizes(report: Report) -> Bars | None:
    values = {
        each.name: _Value(each.engine.bytes, f"{numerals.megabytes(each.engine.bytes)} MB")
        for each in report.variants
        if each.engine is not None
    }
    return _from_zero("Size", report, values)


def _latencies(report: Report) -> Bars | None:
    values: _Values = {}
    batches = set()
    for variant in report.variants:
        latency = figures.headline(variant)
        if latency is not None:
            found = stats(latency)
            text = f"{numerals.ms_with_spread(found.median_ms, found.spread_ms)} ms"
            values[variant.name] = _Value(found.median_ms, text, found.spread_ms)
            batches.add(latency.batch)
    batch = f" at batch {min(batches)}" if len(batches) == 1 else ""
    return _from_zero(f"Median latency{batch}, with spread", report, values)


def _changes(report: Report) -> Bars | None:
    """Return the change of top-1 with its interval, else how often answers are those of FP32."""
    scored = {each.name: each.accuracy for each in report.variants if each.accuracy is not None}
    changes = {
        name: _Value(
            each.change_pp,
            f"{numerals.change(each.change_pp, each.half_width_pp)} pp",
            each.half_width_pp or 0.0,
        )
        for name, each in scored.items()
        if each.change_pp is not None
    }
    if changes:
        return _around_zero("Change of top-1, with 95 % interval", report, changes)
    agreeing = {
        name: _Value(each.agreement, f"{numerals.percent(each.agreement)} %")
        for name, each in scored.items()
        if each.agreement is not None
    }
    return _from_zero("Answers as by FP32", report, agreeing)


def _from_zero(title: str, report: Report, values: _Values) -> Bars | None:
    if not values:
        return None
    most = max(each.value + each.spread for each in values.values()) or 1.0
    bars = (
        Bar(
            variant.name,
            each.text,
            variant.precision,
            length=100 * each.value / most,
            whisker=_whisker(each, 0.0, most),
        )
        for variant, each in _in_order(report, values)
    )
    return Bars(title, tuple(bars))


def _around_zero(title: str, report: Report, values: _Values) -> Bars:
    reach = max(abs(each.value) + each.spread for each in values.values()) or 1.0
    bars = (
        Bar(
            variant.name,
            each.text,
            variant.precision,
            start=50 + 50 * min(each.value, 0.0) / reach,
            length=50 * abs(each.value) / reach,
            whisker=_whisker(each, -reach, reach),
        )
        for variant, each in _in_order(report, values)
    )
    return Bars(title, tuple(bars), zero=50.0)


def _in_order(report: Report, values: _Values) -> list[tuple[Variant, _Value]]:
    """Return every variant; one without a value keeps its place, without a bar."""
    return [(each, values.get(each.name, _Value(0.0, MISSING))) for each in report.variants]


def _whisker(value: _Value, low: float, high: float) -> tuple[float, float] | None:
    if not value.spread:
        return None
    ends = (value.value - value.spread, value.value + value.spread)
    start, end = (100 * (min(max(each, low), high) - low) / (high - low) for each in ends)
    return start, end - start
