"""The tables of a report: size, latency, accuracy, gates, placement, engines, and searches."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qconvert.core import number_format as fmt
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.latency import Latency, summarize_latency
from qconvert.measure.mixed_result import MixedResult, PredictionLoss, SearchStep
from qconvert.report import gates, metrics
from qconvert.report.metrics import missing_reason, missing_score_reason
from qconvert.report.model import MemoryUse, Report
from qconvert.report.table import (
    MISSING,
    Footnotes,
    TextColumn,
    TextTable,
    number_columns,
    optional_cell,
    text_columns,
)

BASELINE_ROW = "FP32 ONNX"
BEST_MARK = "◆"
COMPARED_WITH_FILE = "against the FP32 ONNX file: no fp32 engine of this backend was built"
SIMULATED_ACCURACY = "the same graph on ONNX Runtime's CPU: the engine does not run here"
MEMORY_COLUMNS = {"peak_rss_bytes": "memory MB", "device_bytes": "device MB"}
MAX_REASONS = 12
MAX_BLOCKS = 10
HASH_DIGITS = 12
LOSS_MEASURES = {
    "top-1": "points of top-1, over images with labels",
    "agreement": "points of agreement with FP32",
    "certainty": "points of top-1 weighted by FP32: the probability that changed predictions lose",
}


def overview_table(report: Report) -> TextTable:
    """Return a row for each variant: size, latency at its smallest batch, accuracy, gates."""
    scored = [variant.accuracy for variant in report.variants if variant.accuracy is not None]
    if not scored or any(accuracy.top1 is not None for accuracy in scored):
        scores = [ScoreColumn("top-1", "top1"), ScoreColumn("Δ pp", "change_pp", fmt.signed)]
    else:
        scores = list(UNLABELLED_SCORES[:2])
    rows = []
    for variant in report.variants:
        passed = metrics.passes_gates(report, variant)
        status = "baseline" if variant.precision == "fp32" else ""
        if passed is not None:
            status = gates.PASS if passed else gates.FAIL
        if variant.name == report.best:
            status = f"{status} {BEST_MARK}".strip()
        size = variant.engine.bytes if variant.engine is not None else None
        rows.append(
            (
                variant.name,
                optional_cell(size, fmt.megabytes, MISSING),
                optional_cell(metrics.headline_latency(variant), _median_cell, MISSING),
                optional_cell(metrics.headline_speedup(report, variant), fmt.ratio, MISSING),
                *(
                    optional_cell(
                        getattr(variant.accuracy, score.field, None), score.write, MISSING
                    )
                    for score in scores
                ),
                status,
            )
        )
    columns = (
        *text_columns("variant"),
        *number_columns("MB", "p50 ms"),
        *number_columns("speed", rank=1),
        *number_columns(scores[0].title),
        *number_columns(scores[1].title, rank=2),
        *text_columns("gate" if report.gates else ""),
    )
    return TextTable(columns, rows, "Variants")


def gate_table(report: Report) -> TextTable:
    """Return a row for each gate and variant."""
    notes = Footnotes()
    rows = []
    for gate in report.gates:
        value, limit = gates.format_gate(gate)
        mark = notes.mark(gate.why) if gate.why else ""
        result = gates.PASS if gate.passed else gates.FAIL
        rows.append((gate.name, gate.variant, value + mark, limit, result))
    columns = (
        *text_columns("gate", "variant"), *number_columns("value", "limit"), *text_columns("result")
    )  # fmt: skip
    return TextTable(columns, rows, "Gates", notes.texts())


def size_table(report: Report) -> TextTable:
    """Return megabytes on disk, their ratio to fp32, and memory at run time where measured."""
    notes = Footnotes()
    memories = [variant.memory or MemoryUse() for variant in report.variants]
    measured = [
        field
        for field in MEMORY_COLUMNS
        if any(getattr(memory, field) is not None for memory in memories)
    ]
    rows = [(BASELINE_ROW, fmt.megabytes(report.baseline_bytes), "", *[""] * len(measured))]
    for variant, memory in zip(report.variants, memories, strict=True):
        base, reason = metrics.fp32_variant(report, variant), missing_reason(variant)
        ratio = metrics.size_ratio(report, variant)
        size = variant.engine.bytes if variant.engine is not None and ratio is not None else None
        mark = ""
        if size is not None and (base is None or base.engine is None):
            mark = notes.mark(COMPARED_WITH_FILE)
        rows.append(
            (
                variant.name,
                notes.cell(size, fmt.megabytes, reason),
                notes.cell(ratio, fmt.ratio, reason) + mark,
                *(
                    notes.cell(
                        getattr(memory, field),
                        fmt.megabytes,
                        missing_reason(variant, field, "memory"),
                    )
                    for field in measured
                ),
            )
        )
    titles = ("MB", "ratio", *(MEMORY_COLUMNS[field] for field in measured))
    columns = (*text_columns("variant"), *number_columns(*titles))
    return TextTable(columns, rows, "Size", notes.texts())


def latency_table(report: Report) -> TextTable:
    """Return a row for each engine and batch size, with calls on the device in their own column."""
    notes = Footnotes()
    with_device = any(
        latency.where == "device" for variant in report.variants for latency in variant.latency
    )
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        reason, base = missing_reason(variant, "latency"), metrics.fp32_variant(report, variant)
        not_compared = f"no fp32 engine of `{variant.backend}` to compare with"
        if base is not None:
            not_compared = f"`{base.name}` was not timed at this batch size"
        batches = sorted({latency.batch for latency in variant.latency if latency.samples_ms})
        for batch in batches:
            host = metrics.latency_at(variant, batch, "host")
            device = metrics.latency_at(variant, batch, "device")
            latency = host or device
            assert latency is not None
            speedup = metrics.speedup(report, variant, latency)
            on_device = [optional_cell(device, _device_cell)] if with_device else []
            rows.append(
                (
                    variant.name,
                    str(batch),
                    notes.cell(host, _median_cell, reason),
                    *on_device,
                    fmt.throughput(summarize_latency(latency).images_per_second),
                    notes.cell(speedup, fmt.ratio, not_compared),
                )
            )
        if not batches:
            rows.append((variant.name, "", notes.missing(reason), *[""] * (2 + with_device)))
    titles = ("batch", "median ms", *(["device ms"] if with_device else []), "images/s", "speed-up")
    columns = (*text_columns("variant"), *number_columns(*titles))
    return TextTable(columns, rows, "Latency", notes.texts())


def _median_cell(latency: Latency) -> str:
    stats = summarize_latency(latency)
    return fmt.ms_with_spread(stats.median_ms, stats.spread_ms)


def _device_cell(latency: Latency) -> str:
    return fmt.ms(summarize_latency(latency).median_ms)


def timing_table(report: Report) -> TextTable:
    """Return the statistics of every latency."""
    rows = []
    for variant in report.variants:
        for latency in variant.latency:
            if latency.samples_ms:
                stats = summarize_latency(latency)
                tail = map(fmt.ms, (stats.min_ms, stats.p95_ms, stats.p99_ms))
                cells = (str(latency.batch), latency.where, _median_cell(latency), *tail)
                rows.append((variant.name, *cells, str(stats.samples)))
    columns = (
        *text_columns("variant"),
        *number_columns("batch"),
        TextColumn("where", rank=2),
        *number_columns("median ms"),
        *number_columns("min", rank=1),
        *number_columns("p95", "p99", "runs", rank=3),
    )
    return TextTable(columns, rows, "Timings")


@dataclass(frozen=True)
class ScoreColumn:
    """A column of the accuracy table: its title, its field of Accuracy, and its format."""

    title: str
    field: str
    write: Callable[[float], str] = fmt.percent

    def cell(self, accuracy: Accuracy) -> str | None:
        """Return the cell; None where the score is missing."""
        value = getattr(accuracy, self.field)
        if self.field == "change_pp" and value is not None:
            return fmt.change_with_interval(value, accuracy.half_width_pp)
        return None if value is None else self.write(value)


AGREEMENT = ScoreColumn("agrees", "agreement")
LABELLED_SCORES = (
    ScoreColumn("top-1", "top1"),
    ScoreColumn("precision", "precision"),
    ScoreColumn("recall", "recall"),
    ScoreColumn("F1", "f1"),
    ScoreColumn("change pp", "change_pp"),
    AGREEMENT,
)
UNLABELLED_SCORES = (
    AGREEMENT,
    ScoreColumn("SQNR dB", "sqnr_db", fmt.decibels),
    ScoreColumn("KL", "kl", fmt.divergence),
    ScoreColumn("cosine", "cosine", "{:.5f}".format),
)


def accuracy_table(report: Report) -> TextTable:
    """Return the scores in percent; without labels agreement and the error of the outputs."""
    notes = Footnotes()
    scored = [variant for variant in report.variants if variant.accuracy is not None]
    accuracies = [variant.accuracy for variant in scored if variant.accuracy is not None]
    if report.baseline is not None:
        accuracies.append(report.baseline)
    labelled = any(accuracy.top1 is not None for accuracy in accuracies)
    columns = LABELLED_SCORES if labelled else _unlabelled_scores(accuracies)
    rows = []
    if report.baseline is not None:
        cells = [column.cell(report.baseline) for column in columns]
        if any(cells):
            rows.append((BASELINE_ROW, *(cell or "" for cell in cells)))
    for variant in report.variants:
        accuracy, name = variant.accuracy, variant.name
        if accuracy is not None and accuracy.measured_on == "cpu-simulation":
            name += notes.mark(SIMULATED_ACCURACY)
        row = [name]
        for column in columns:
            cell = None if accuracy is None else column.cell(accuracy)
            row.append(notes.cell(cell, str, missing_score_reason(variant, column.field)))
        rows.append(tuple(row))
    title = "Accuracy"
    most = max(accuracies, key=lambda accuracy: accuracy.images, default=None)
    if most is not None and most.images:
        with_label = most.labelled if labelled else None
        title += f", % of {fmt.image_count(most.images, with_label)}"
        if with_label and with_label < most.images:
            title += " (agrees: of all)"
    if scored and not labelled:
        title += notes.mark(missing_score_reason(scored[0], "top1"))
    header = (*text_columns("variant"), *number_columns(*(column.title for column in columns)))
    return TextTable(header, rows, title, notes.texts())


def _unlabelled_scores(accuracies: list[Accuracy]) -> tuple[ScoreColumn, ...]:
    measured = (
        column
        for column in UNLABELLED_SCORES
        if any(column.cell(accuracy) is not None for accuracy in accuracies)
    )
    return tuple(measured) or (LABELLED_SCORES[0], AGREEMENT)


def class_table(report: Report) -> TextTable:
    """Return the classes whose recall changed most."""
    rows = [
        (
            variant.name,
            class_name(report, shift.label),
            str(shift.images),
            fmt.percent(shift.before),
            fmt.percent(shift.after),
            fmt.signed(shift.after - shift.before),
        )
        for variant in report.variants
        if variant.accuracy is not None
        for shift in variant.accuracy.shifts
    ]
    titles = ("images", "FP32 right, %", "right, %", "Δ pp")
    columns = (*text_columns("variant", "class"), *number_columns(*titles))
    return TextTable(columns, rows, "Classes that changed most")


def class_name(report: Report, number: int) -> str:
    """Return the name of a class, or its number."""
    return (report.evidence.classes or {}).get(str(number), f"class {number}")


def placement_table(report: Report) -> TextTable:
    """Return the nodes of every engine by provider and by the precision they run in."""
    notes = Footnotes()
    rows = []
    for variant in report.variants:
        # No engine runs on no provider: an empty count is an unmeasured one.
        counts = {"by_provider": variant.by_provider or None, "by_precision": variant.by_precision}
        cells = [
            notes.cell(nodes, _count_cell, missing_reason(variant, field, "latency"))
            for field, nodes in counts.items()
        ]
        of_all = f"{variant.quantized} of {variant.candidates}" if variant.candidates else ""
        rows.append((variant.name, *cells, of_all))
    columns = (
        *text_columns("variant"),
        *text_columns("nodes by provider", "by precision", wrap=True),
        *number_columns("quantized"),
    )
    return TextTable(columns, rows, "Where it runs", notes.texts())


def _count_cell(nodes: dict[str, int]) -> str:
    ordered = sorted(nodes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in ordered)


def operator_table(report: Report) -> TextTable:
    """Return how many nodes of each operator are quantized."""
    rows = [
        (variant.name, op.op, str(op.nodes), str(op.quantized), str(op.nodes - op.quantized))
        for variant in report.variants
        for op in variant.operators
    ]
    columns = (*text_columns("variant", "operator"), *number_columns("nodes", "int8", "left"))
    return TextTable(columns, rows, "Coverage by operator")


def unquantized_table(report: Report) -> TextTable:
    """Return the reasons why operators were not quantized, the most frequent first."""
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        reasons = Counter((node.op, node.reason) for node in variant.unquantized)
        for (op, reason), number in reasons.most_common(MAX_REASONS):
            rows.append((variant.name, op, str(number), reason))
        if len(reasons) > MAX_REASONS:
            more = f"and {len(reasons) - MAX_REASONS} more reasons"
            rows.append((variant.name, MISSING, "", more))
    columns = (
        *text_columns("variant", "operator"),
        *number_columns("nodes"),
        *text_columns("why", wrap=True),
    )
    return TextTable(columns, rows, "Not quantized")


def engine_table(report: Report) -> TextTable:
    """Return the engines' paths, hashes, build times and versions."""
    rows = [
        (
            variant.name,
            f"`{engine.path}`",
            engine.sha256[:HASH_DIGITS],
            f"{engine.build_seconds:.1f} s" + (", cached" if engine.stored else ""),
            ", ".join(f"{name} {version}" for name, version in engine.made_with.items()),
        )
        for variant in report.variants
        if (engine := variant.engine) is not None
    ]
    columns = (
        *text_columns("engine", "path", "sha256"),
        *number_columns("built in"),
        *text_columns("built with", wrap=True),
    )
    return TextTable(columns, rows, "Engines")


def provenance(report: Report) -> dict[str, str]:
    """Return the facts that let someone repeat the run, as names and values."""
    facts = {"tool": report.tool, "created": report.created, **report.machine}
    for name, images in (("calibration", report.calibration), ("evaluation", report.evaluation)):
        if images is not None:
            digest = f", list {images.sha256[:HASH_DIGITS]}" if images.sha256 else ""
            facts[name] = f"{fmt.count(images.count, 'image')} of `{images.path}`{digest}"
    if report.seconds:
        facts["seconds"] = ", ".join(f"{step} {took:.1f}" for step, took in report.seconds.items())
    return facts


def search_tables(report: Report) -> list[TextTable]:
    """Return the tables of all searches of a report, each with its backend in the title."""
    return [
        replace(table, title=f"{table.title} (`{backend}`)")
        for backend, result in report.mixes.items()
        if result.gains
        for table in (block_table(result), trial_table(result))
    ]


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
    numbers = number_columns("compute %", "error removed %")
    columns = (*text_columns("block"), *numbers, TextColumn("", rank=1))
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
    columns = (*number_columns(*titles, *(["ms"] if timed else [])), *text_columns(""))
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
        loss = steps[name].confirmed or steps[name].search if name in steps else None
        rows.append(
            (
                name,
                optional_cell(size, fmt.megabytes, MISSING),
                notes.cell(latency, fmt.ms, result.untimed),
                optional_cell(loss, _loss_cell),
                "" if loss is None else fmt.percent(loss.agreement),
            )
        )
    titles = ("MB", "p50 ms", "loses pp", "agrees %")
    columns = (*text_columns("precision"), *number_columns(*titles))
    return TextTable(columns, rows, "Result", notes.texts())


def _loss_cell(loss: PredictionLoss) -> str:
    return f"{loss.pp:.2f} ± {loss.half_width_pp:.2f}"
