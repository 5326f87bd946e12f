"""Tables of a search for mixed precision: what each block brings, which sets were tried."""

from collections.abc import Mapping
from dataclasses import replace

from qconvert.measure.mix import Loss, Mix, Step
from qconvert.report import numerals
from qconvert.report.model import Report
from qconvert.report.sheet import MISSING, Column, Footnotes, Sheet, right

MOST = 10
BY = {
    "top-1": "points of top-1, over images with labels",
    "agreement": "points of agreement with FP32",
    "certainty": "points of top-1 as FP32 weighs them: the probability that it gives up where an "
    "answer changed",
}


def sheets(report: Report) -> list[Sheet]:
    """Return the tables of all searches of a report, each with its backend in the title."""
    return [
        replace(sheet, title=f"{sheet.title} (`{backend}`)")
        for backend, mix in report.mixes.items()
        if mix.gains
        for sheet in (gains(mix), path(mix))
    ]


def gains(mix: Mix, most: int = MOST) -> Sheet:
    """Return the blocks whose lifting alone brings the answers nearest to those of FP32."""
    first = sorted(mix.gains, key=lambda each: -each.gain)[:most]
    lifted = set(mix.chosen.lifted) if mix.chosen is not None else set()
    base = mix.int8.distance or 1.0
    rows = tuple(
        (
            each.block,
            numerals.percent(100 * each.share),
            f"{100 * each.gain / base:+.1f} ± {100 * each.half_width / base:.1f}",
            f"lifted to {mix.rest}" if each.block in lifted else "",
        )
        for each in first
    )
    columns = (Column("block"), *right("compute %", "error taken away %"), Column("", rank=1))
    title = f"Blocks by what lifting each alone brings, {len(first)} of {len(mix.gains)}"
    return Sheet(title, columns, rows)


def path(mix: Mix) -> Sheet:
    """Return the sets that were tried, from INT8 as it is to the largest."""
    notes = Footnotes()
    loss = "loses pp" + notes.mark(BY[mix.int8.search.by])
    confirmed_by = "confirmed" + notes.mark(BY[mix.by])
    found = [mix.int8, *mix.steps]
    timed = any(step.ms is not None for step in found)
    rows = tuple(
        (
            str(len(step.lifted)),
            numerals.percent(100 * step.share),
            f"{step.distance:.5f}",
            f"{step.search.pp:.2f}",
            MISSING if step.confirmed is None else _written(step.confirmed),
            *(("" if step.ms is None else numerals.ms(step.ms),) if timed else ()),
            "◆" if mix.chosen is not None and step.lifted == mix.chosen.lifted else "",
        )
        for step in found
    )
    columns = (
        *right("lifted", "compute %", "distance", loss, confirmed_by),
        *(right("ms") if timed else ()),
        Column(""),
    )
    searched = mix.int8.search.images
    confirmed = mix.int8.confirmed.images if mix.int8.confirmed is not None else 0
    title = f"Sets tried on {searched} images, confirmed on {numerals.count(confirmed, 'image')}"
    return Sheet(title, columns, rows, notes.texts())


def result(mix: Mix, sizes: Mapping[str, int]) -> Sheet:
    """Return what was found beside INT8 and the float model."""
    notes = Footnotes()
    rows = [_row("int8", mix.int8, sizes, mix, notes)]
    if mix.chosen is not None:
        rows.append(_row("mixed", mix.chosen, sizes, mix, notes))
    other = "" if mix.float_ms is None else numerals.ms(mix.float_ms)
    size = numerals.megabytes(sizes["fp32"]) if mix.rest == "fp32" and "fp32" in sizes else MISSING
    rows.append((mix.rest, size, other or notes.missing(mix.untimed), "", ""))
    columns = (Column("precision"), *right("MB", "p50 ms", "loses pp", "agrees %"))
    return Sheet("Result", columns, tuple(rows), notes.texts())


def _row(
    name: str, step: Step, sizes: Mapping[str, int], mix: Mix, notes: Footnotes
) -> tuple[str, ...]:
    ms = notes.missing(mix.untimed) if step.ms is None else numerals.ms(step.ms)
    size = numerals.megabytes(sizes[name]) if name in sizes else MISSING
    found = step.confirmed or step.search
    return name, size, ms, _written(found), numerals.percent(found.agreement)


def _written(found: Loss) -> str:
    return f"{found.pp:.2f} ± {found.half_width_pp:.2f}"
