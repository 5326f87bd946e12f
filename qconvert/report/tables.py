"""The three tables that come first: size, latency, accuracy."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qconvert.core import number_format
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.mixed_result import MixedResult, PredictionLoss, SearchStep
from qconvert.measure.stats import summarize_latency
from qconvert.report import gates, metrics
from qconvert.report.metrics import missing_reason, missing_score_reason
from qconvert.report.model import MemoryUse, Report, VariantResult
from qconvert.report.table import MISSING, Footnotes, TextColumn, TextTable, number_columns

COMPARED_WITH_FILE = "against the FP32 ONNX file: no fp32 engine of this backend was built"
SIMULATED_ACCURACY = "answers of the same graph on ONNX Runtime's CPU: the engine does not run here"
BASELINE_ROW = "FP32 ONNX"


def size_table(report: Report) -> TextTable:
    """Return megabytes on disk and their ratio to fp32, and at work where that was measured."""
    notes = Footnotes()
    memories = [variant.memory for variant in report.variants if variant.memory is not None]
    shown = [
        name for name in MEMORY_COLUMNS if any(getattr(each, name) is not None for each in memories)
    ]
    rows = [(BASELINE_ROW, number_format.megabytes(report.baseline_bytes), "", *[""] * len(shown))]
    for variant in report.variants:
        cells = _size_cells(report, variant, notes)
        at_work = (_memory_cell(variant, name, notes) for name in shown)
        rows.append((variant.name, *cells, *at_work))
    columns = (
        TextColumn("variant"),
        *number_columns("MB", "ratio", *(MEMORY_COLUMNS[name] for name in shown)),
    )
    return TextTable(columns, tuple(rows), "Size", notes.texts())


MEMORY_COLUMNS = {"peak_rss_bytes": "memory MB", "device_bytes": "device MB"}


def _size_cells(report: Report, variant: VariantResult, notes: Footnotes) -> tuple[str, str]:
    ratio = metrics.size_ratio(report, variant)
    if variant.engine is None or ratio is None:
        gone = notes.missing(missing_reason(variant))
        return gone, gone
    base = metrics.fp32_variant(report, variant)
    mark = "" if base is not None and base.engine else notes.mark(COMPARED_WITH_FILE)
    return number_format.megabytes(variant.engine.bytes), number_format.ratio(ratio) + mark


def _memory_cell(variant: VariantResult, name: str, notes: Footnotes) -> str:
    found = getattr(variant.memory or MemoryUse(), name)
    if found is None:
        return notes.missing(missing_reason(variant, name, "memory"))
    return number_format.megabytes(found)


def latency_table(report: Report) -> TextTable:
    """Return a row for each engine and batch size; calls with inputs on the device apart."""
    notes = Footnotes()
    device = any(each.where == "device" for variant in report.variants for each in variant.latency)
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        for batch in sorted({each.batch for each in variant.latency if each.samples_ms}):
            rows.append(_latency_row(report, variant, batch, notes))
        if metrics.headline_latency(variant) is None:
            rows.append(
                (variant.name, "", notes.missing(missing_reason(variant, "latency")), "", "", "")
            )
    columns = (
        TextColumn("variant"),
        *number_columns("batch", "median ms", "device ms", "images/s", "speed-up"),
    )
    sheet = TextTable(columns, tuple(rows), "Latency", notes.texts())
    return sheet if device else without_column(sheet, "device ms")


def without_column(sheet: TextTable, title: str) -> TextTable:
    """Return a table that lacks one column."""
    kept = [index for index, column in enumerate(sheet.columns) if column.title != title]
    rows = tuple(tuple(row[index] for index in kept) for row in sheet.rows)
    return replace(sheet, columns=tuple(sheet.columns[index] for index in kept), rows=rows)


def _latency_row(
    report: Report, variant: VariantResult, batch: int, notes: Footnotes
) -> tuple[str, ...]:
    host = metrics.latency_at(variant, batch, "host")
    device = metrics.latency_at(variant, batch, "device")
    found = host or device
    assert found is not None
    timing = summarize_latency(found)
    ratio = metrics.speedup(report, variant, found)
    return (
        variant.name,
        str(batch),
        number_format.ms_with_spread(timing.median_ms, timing.spread_ms)
        if host
        else notes.missing(missing_reason(variant, "latency")),
        number_format.ms(summarize_latency(device).median_ms) if device else "",
        number_format.throughput(timing.images_per_second),
        notes.missing(_missing_speedup_reason(report, variant))
        if ratio is None
        else number_format.ratio(ratio),
    )


def _missing_speedup_reason(report: Report, variant: VariantResult) -> str:
    base = metrics.fp32_variant(report, variant)
    if base is None:
        return f"no fp32 engine of `{variant.backend}` to compare with"
    return f"`{base.name}` was not timed at this batch size"


@dataclass(frozen=True)
class ScoreColumn:
    """A column of the accuracy table: its title, the field it stands on, and how it is written."""

    title: str
    field: str
    format: Callable[[Accuracy], str]


def _percent(name: str) -> Callable[[Accuracy], str]:
    return lambda accuracy: number_format.percent(getattr(accuracy, name))


AGREEMENT = ScoreColumn("agrees", "agreement", _percent("agreement"))
LABELLED_SCORES = (
    ScoreColumn("top-1", "top1", _percent("top1")),
    ScoreColumn("precision", "precision", _percent("precision")),
    ScoreColumn("recall", "recall", _percent("recall")),
    ScoreColumn("F1", "f1", _percent("f1")),
    ScoreColumn(
        "change pp",
        "change_pp",
        lambda a: number_format.change_with_interval(a.change_pp or 0, a.half_width_pp),
    ),
    AGREEMENT,
)
UNLABELLED_SCORES = (
    AGREEMENT,
    ScoreColumn("SQNR dB", "sqnr_db", lambda a: number_format.decibels(a.sqnr_db or 0)),
    ScoreColumn("KL", "kl", lambda a: number_format.divergence(a.kl or 0)),
    ScoreColumn("cosine", "cosine", lambda a: f"{a.cosine:.5f}"),
)


def accuracy_table(report: Report) -> TextTable:
    """Return the scores in percent; without labels agreement and the distance of the outputs."""
    notes = Footnotes()
    rated = [each.accuracy for each in report.variants if each.accuracy is not None]
    known = [*rated, report.baseline] if report.baseline is not None else rated
    scores = _score_columns(known)
    rows = []
    if report.baseline is not None and any(_has_score(report.baseline, each) for each in scores):
        rows.append(
            (BASELINE_ROW, *(_score_cell(report.baseline, each, "", notes) for each in scores))
        )
    for variant in report.variants:
        mark = ""
        if variant.accuracy is not None and variant.accuracy.measured_on == "cpu-simulation":
            mark = notes.mark(SIMULATED_ACCURACY)
        cells = (_variant_score_cell(variant, each, notes) for each in scores)
        rows.append((variant.name + mark, *cells))
    title = f"Accuracy{_image_count_suffix(known, labelled=scores is LABELLED_SCORES)}"
    if rated and scores is not LABELLED_SCORES:
        first = next(each for each in report.variants if each.accuracy is not None)
        title += notes.mark(missing_score_reason(first, "top1"))
    columns = (TextColumn("variant"), *number_columns(*(each.title for each in scores)))
    return TextTable(columns, tuple(rows), title, notes.texts())


def _image_count_suffix(known: list[Accuracy], *, labelled: bool) -> str:
    """Return what the percentages are of; images without a label count for agreement alone."""
    most = max(known, key=lambda each: each.images, default=None)
    if most is None or not most.images:
        return ""
    some = most.labelled if labelled else None
    told = f", % of {number_format.image_count(most.images, some)}"
    return f"{told} (agrees: of all)" if some and some < most.images else told


def _score_columns(known: list[Accuracy]) -> tuple[ScoreColumn, ...]:
    if any(each.top1 is not None for each in known):
        return LABELLED_SCORES
    found = tuple(
        score for score in UNLABELLED_SCORES if any(_has_score(each, score) for each in known)
    )
    return found or (LABELLED_SCORES[0], AGREEMENT)


def _has_score(accuracy: Accuracy, score: ScoreColumn) -> bool:
    return getattr(accuracy, score.field) is not None


def _score_cell(accuracy: Accuracy, score: ScoreColumn, why: str, notes: Footnotes) -> str:
    if _has_score(accuracy, score):
        return score.format(accuracy)
    return notes.missing(why) if why else ""


def _variant_score_cell(variant: VariantResult, score: ScoreColumn, notes: Footnotes) -> str:
    why = missing_score_reason(variant, score.field)
    if variant.accuracy is None:
        return notes.missing(why)
    return _score_cell(variant.accuracy, score, why, notes)


BEST_MARK = "◆"


def overview_table(report: Report) -> TextTable:
    """Return a row a variant: size, latency at its smallest batch, answers, and the best marked."""
    rated = [variant for variant in report.variants if variant.accuracy is not None]
    labelled = not rated or any(_top1_cell(variant) for variant in rated)
    scores = ("top-1", "Δ pp") if labelled else ("agrees", "SQNR dB")
    rows = []
    for variant in report.variants:
        answers = (
            (_top1_cell(variant), _top1_change_cell(variant))
            if labelled
            else _output_error_cells(variant)
        )
        rows.append(
            (
                variant.name,
                number_format.megabytes(variant.engine.bytes) if variant.engine else MISSING,
                _p50_cell(variant),
                _speedup_cell(report, variant),
                *(cell or MISSING for cell in answers),
                _gate_cell(report, variant),
            )
        )
    columns = (
        TextColumn("variant"),
        *number_columns("MB", "p50 ms"),
        TextColumn("speed", "right", rank=1),
        TextColumn(scores[0], "right"),
        TextColumn(scores[1], "right", rank=2),
        TextColumn("gate" if report.gates else ""),
    )
    return TextTable(columns, tuple(rows), "Variants")


def gate_table(report: Report) -> TextTable:
    """Return a row a gate."""
    notes = Footnotes()
    rows = []
    for gate in report.gates:
        value, limit = gates.format_gate(gate)
        mark = notes.mark(gate.why) if gate.why else ""
        result = gates.PASS if gate.passed else gates.FAIL
        rows.append((gate.name, gate.variant, value + mark, limit, result))
    columns = (
        TextColumn("gate"),
        TextColumn("variant"),
        *number_columns("value", "limit"),
        TextColumn("result"),
    )
    return TextTable(columns, tuple(rows), "Gates", notes.texts())


def timing_table(report: Report) -> TextTable:
    """Return the figures of every latency, a row each."""
    rows = []
    for variant in report.variants:
        for latency in variant.latency:
            if latency.samples_ms:
                found = summarize_latency(latency)
                tail = (found.min_ms, found.p95_ms, found.p99_ms)
                median = number_format.ms_with_spread(found.median_ms, found.spread_ms)
                how = (str(latency.batch), latency.where)
                runs = str(len(latency.samples_ms))
                rows.append((variant.name, *how, median, *map(number_format.ms, tail), runs))
    columns = (
        TextColumn("variant"),
        TextColumn("batch", "right"),
        TextColumn("where", rank=2),
        TextColumn("median ms", "right"),
        TextColumn("min", "right", rank=1),
        *(TextColumn(title, "right", rank=3) for title in ("p95", "p99", "runs")),
    )
    return TextTable(columns, tuple(rows), "Timings")


def _p50_cell(variant: VariantResult) -> str:
    latency = metrics.headline_latency(variant)
    if latency is None:
        return MISSING
    found = summarize_latency(latency)
    return number_format.ms_with_spread(found.median_ms, found.spread_ms)


def _speedup_cell(report: Report, variant: VariantResult) -> str:
    ratio = metrics.headline_speedup(report, variant)
    return MISSING if ratio is None else number_format.ratio(ratio)


def _top1_cell(variant: VariantResult) -> str:
    accuracy = variant.accuracy
    return "" if accuracy is None or accuracy.top1 is None else number_format.percent(accuracy.top1)


def _top1_change_cell(variant: VariantResult) -> str:
    accuracy = variant.accuracy
    if accuracy is None or accuracy.change_pp is None:
        return ""
    return number_format.signed(accuracy.change_pp)


def _output_error_cells(variant: VariantResult) -> tuple[str, str]:
    accuracy = variant.accuracy
    if accuracy is None:
        return "", ""
    agrees = "" if accuracy.agreement is None else number_format.percent(accuracy.agreement)
    return agrees, "" if accuracy.sqnr_db is None else number_format.decibels(accuracy.sqnr_db)


def _gate_cell(report: Report, variant: VariantResult) -> str:
    """Say how the limits were kept, and mark the best."""
    kept = metrics.passes_gates(report, variant)
    words = "baseline" if variant.precision == "fp32" else ""
    if kept is not None:
        words = gates.PASS if kept else gates.FAIL
    return f"{words} {BEST_MARK}".strip() if variant.name == report.best else words


MAX_REASONS = 12


def placement_table(report: Report) -> TextTable:
    """Return the nodes of every engine by provider and by the precision they run in."""
    notes = Footnotes()
    rows = []
    for variant in report.variants:
        by_precision = (
            notes.missing(missing_reason(variant, "by_precision", "latency"))
            if variant.by_precision is None
            else _node_counts(variant.by_precision)
        )
        by_provider = (
            _node_counts(variant.by_provider)
            if variant.by_provider
            else notes.missing(missing_reason(variant, "by_provider", "latency"))
        )
        rows.append((variant.name, by_provider, by_precision, _quantized_cell(variant)))
    columns = (
        TextColumn("variant"),
        TextColumn("nodes by provider", wrap=True),
        TextColumn("by precision", wrap=True),
        TextColumn("quantized", "right"),
    )
    return TextTable(columns, tuple(rows), "Where it runs", notes.texts())


def unquantized_table(report: Report) -> TextTable:
    """Return a row for every reason why operators were not quantized, the most frequent first."""
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        found = Counter((each.op, each.reason) for each in variant.unquantized)
        for (op, reason), number in found.most_common(MAX_REASONS):
            rows.append((variant.name, op, str(number), reason))
        if len(found) > MAX_REASONS:
            more = f"and {len(found) - MAX_REASONS} more reasons"
            rows.append((variant.name, MISSING, "", more))
    columns = (
        TextColumn("variant"),
        TextColumn("operator"),
        TextColumn("nodes", "right"),
        TextColumn("why", wrap=True),
    )
    return TextTable(columns, tuple(rows), "Not quantized")


def _node_counts(found: dict[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{number} {name.removesuffix('ExecutionProvider')}" for name, number in ordered
    )


def _quantized_cell(variant: VariantResult) -> str:
    return f"{variant.quantized} of {variant.candidates}" if variant.candidates else ""


MAX_BLOCKS = 10
LOSS_MEASURES = {
    "top-1": "points of top-1, over images with labels",
    "agreement": "points of agreement with FP32",
    "certainty": "points of top-1 as FP32 weighs them: the probability that it gives up where an "
    "answer changed",
}


def search_tables(report: Report) -> list[TextTable]:
    """Return the tables of all searches of a report, each with its backend in the title."""
    return [
        replace(sheet, title=f"{sheet.title} (`{backend}`)")
        for backend, mix in report.mixes.items()
        if mix.gains
        for sheet in (block_table(mix), trial_table(mix))
    ]


def block_table(mix: MixedResult, most: int = MAX_BLOCKS) -> TextTable:
    """Return the blocks whose lifting alone brings the answers nearest to those of FP32."""
    first = sorted(mix.gains, key=lambda each: -each.gain)[:most]
    lifted = set(mix.chosen.lifted) if mix.chosen is not None else set()
    base = mix.int8.distance or 1.0
    rows = tuple(
        (
            each.block,
            number_format.percent(100 * each.share),
            f"{100 * each.gain / base:+.1f} ± {100 * each.half_width / base:.1f}",
            f"lifted to {mix.rest}" if each.block in lifted else "",
        )
        for each in first
    )
    columns = (
        TextColumn("block"),
        *number_columns("compute %", "error taken away %"),
        TextColumn("", rank=1),
    )
    title = f"Blocks by what lifting each alone brings, {len(first)} of {len(mix.gains)}"
    return TextTable(columns, rows, title)


def trial_table(mix: MixedResult) -> TextTable:
    """Return the sets that were tried, from INT8 as it is to the largest."""
    notes = Footnotes()
    loss = "loses pp" + notes.mark(LOSS_MEASURES[mix.int8.search.by])
    confirmed_by = "confirmed" + notes.mark(LOSS_MEASURES[mix.by])
    found = [mix.int8, *mix.steps]
    timed = any(step.ms is not None for step in found)
    rows = tuple(
        (
            str(len(step.lifted)),
            number_format.percent(100 * step.share),
            f"{step.distance:.5f}",
            f"{step.search.pp:.2f}",
            MISSING if step.confirmed is None else _loss_cell(step.confirmed),
            *(("" if step.ms is None else number_format.ms(step.ms),) if timed else ()),
            "◆" if mix.chosen is not None and step.lifted == mix.chosen.lifted else "",
        )
        for step in found
    )
    columns = (
        *number_columns("lifted", "compute %", "distance", loss, confirmed_by),
        *(number_columns("ms") if timed else ()),
        TextColumn(""),
    )
    searched = mix.int8.search.images
    confirmed = mix.int8.confirmed.images if mix.int8.confirmed is not None else 0
    title = (
        f"Sets tried on {searched} images, confirmed on {number_format.count(confirmed, 'image')}"
    )
    return TextTable(columns, rows, title, notes.texts())


def search_result_table(mix: MixedResult, sizes: Mapping[str, int]) -> TextTable:
    """Return what was found beside INT8 and the float model."""
    notes = Footnotes()
    rows = [_search_result_row("int8", mix.int8, sizes, mix, notes)]
    if mix.chosen is not None:
        rows.append(_search_result_row("mixed", mix.chosen, sizes, mix, notes))
    other = "" if mix.float_ms is None else number_format.ms(mix.float_ms)
    size = (
        number_format.megabytes(sizes["fp32"])
        if mix.rest == "fp32" and "fp32" in sizes
        else MISSING
    )
    rows.append((mix.rest, size, other or notes.missing(mix.untimed), "", ""))
    columns = (TextColumn("precision"), *number_columns("MB", "p50 ms", "loses pp", "agrees %"))
    return TextTable(columns, tuple(rows), "Result", notes.texts())


def _search_result_row(
    name: str, step: SearchStep, sizes: Mapping[str, int], mix: MixedResult, notes: Footnotes
) -> tuple[str, ...]:
    ms = notes.missing(mix.untimed) if step.ms is None else number_format.ms(step.ms)
    size = number_format.megabytes(sizes[name]) if name in sizes else MISSING
    found = step.confirmed or step.search
    return name, size, ms, _loss_cell(found), number_format.percent(found.agreement)


def _loss_cell(found: PredictionLoss) -> str:
    return f"{found.pp:.2f} ± {found.half_width_pp:.2f}"
