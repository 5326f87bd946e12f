"""The tables of searches for mixed precision: blocks, sets, and the result."""

from collections.abc import Mapping
from dataclasses import replace

from qconvert.core import number_format as fmt
from qconvert.measure.mixed_result import MixedResult, PredictionLoss, SearchStep
from qconvert.report.model import Report
from qconvert.report.table import MISSING, Footnotes, TextTable, make_columns, optional_cell
from qconvert.report.tables import BEST_MARK

MAX_BLOCKS = 10
LOSS_MEASURES = {
    "top-1": "points of top-1, over images with labels",
    "agreement": "points of agreement with FP32",
    "metric": "points of the metric of the task, over images with truth",
    "certainty": "points of top-1 weighted by FP32: the probability that changed predictions lose",
}


def search_tables(report: Report) -> list[TextTable]:
    """Return the tables of all searches of a report, each with its backend in the title."""
    return [
        replace(table, title=f"{table.title} (`{backend}`)")
        for backend, result in report.mixes.items()
        for table in trial_tables(result)
    ]


def trial_tables(result: MixedResult) -> list[TextTable]:
    """Return the tables of the blocks and sets that a search tried."""
    times = [block_time_table(result)] if result.times else []
    return [*times, block_table(result), trial_table(result)] if result.gains else times


def block_time_table(result: MixedResult) -> TextTable:
    """Return the blocks whose operators gain most in float."""
    notes = Footnotes()
    mark = notes.mark(
        "least times of operators, by the profiler of ONNX Runtime, without conversions"
    )
    blocks = sorted(result.times, key=lambda time: time.float_ms - time.int8_ms)[:MAX_BLOCKS]
    in_float = result.faster.lifted if result.faster is not None else ()
    rows = [
        (
            time.block,
            f"{time.int8_ms:.3f}",
            f"{time.float_ms:.3f}",
            f"kept in {result.rest}" if time.block in in_float else "",
        )
        for time in blocks
    ]
    columns = make_columns("l r r l1", "block", f"int8 ms{mark}", f"{result.rest} ms{mark}", "")
    count = f"{len(blocks)} of {len(result.times)}"
    return TextTable(columns, rows, f"Blocks by what float saves, {count}", notes.texts())


def block_table(result: MixedResult) -> TextTable:
    """Return the blocks that reduce the output error most when kept in float alone."""
    blocks = sorted(result.gains, key=lambda gain: -gain.gain)[:MAX_BLOCKS]
    in_float = result.chosen.lifted if result.chosen is not None else ()
    base = result.int8.distance or 1.0
    rows = [
        (
            gain.block,
            fmt.percent(100 * gain.share),
            f"{100 * gain.gain / base:+.1f} ± {100 * gain.half_width / base:.1f}",
            f"kept in {result.rest}" if gain.block in in_float else "",
        )
        for gain in blocks
    ]
    columns = make_columns("l r r l1", "block", "compute %", "error removed %", "")
    title = f"Blocks by the error that each removes in float, {len(blocks)} of {len(result.gains)}"
    return TextTable(columns, rows, title)


def trial_table(result: MixedResult) -> TextTable:
    """Return the sets of float blocks that were tried, from none to the largest."""
    notes = Footnotes()
    loss = "loses pp" + notes.mark(LOSS_MEASURES[result.int8.search.by])
    confirmed_loss = "confirmed" + notes.mark(LOSS_MEASURES[result.by])
    steps = [result.int8, *result.steps]
    timed = any(step.ms is not None for step in steps)
    chosen = result.chosen.lifted if result.chosen is not None else None
    rows = [
        (
            str(len(step.lifted)),
            fmt.percent(100 * step.share),
            f"{step.distance:.5f}",
            f"{step.search.pp:.2f}",
            optional_cell(step.confirmed, _loss_cell, MISSING),
            *([optional_cell(step.ms, fmt.ms)] if timed else []),
            BEST_MARK if step.lifted == chosen else "",
        )
        for step in steps
    ]
    titles = ("in float", "compute %", "output error", loss, confirmed_loss)
    columns = (*make_columns("", *titles, *(["ms"] if timed else [])), *make_columns("l", ""))
    confirmed = result.int8.confirmed.images if result.int8.confirmed is not None else 0
    title = (
        f"Sets tried on {result.int8.search.images} images, "
        f"confirmed on {fmt.count(confirmed, 'image')}"
    )
    return TextTable(columns, rows, title, notes.texts())


def search_result_table(result: MixedResult, sizes: Mapping[str, int]) -> TextTable:
    """Return the mixed engine beside INT8 and the float model."""
    notes = Footnotes()
    steps: dict[str, SearchStep] = {"int8": result.int8}
    if result.chosen is not None:
        steps["mixed"] = result.chosen
    latencies = {name: step.ms for name, step in steps.items()} | {result.rest: result.float_ms}
    rows = []
    for name, latency in latencies.items():
        # Of the float models only fp32 is a file of its own here.
        size = sizes.get(name) if name in (*steps, "fp32") else None
        cells = [optional_cell(size, fmt.megabytes, MISSING)]
        cells.append(notes.cell(latency, fmt.ms, result.untimed))
        loss = steps[name].confirmed or steps[name].search if name in steps else None
        cells += ["", ""] if loss is None else [_loss_cell(loss), fmt.percent(loss.agreement)]
        rows.append((name, *cells))
    columns = make_columns("l", "precision", "MB", "p50 ms", "loses pp", "agrees %")
    return TextTable(columns, rows, "Result", notes.texts())


def _loss_cell(loss: PredictionLoss) -> str:
    return f"{loss.pp:.2f} ± {loss.half_width_pp:.2f}"
