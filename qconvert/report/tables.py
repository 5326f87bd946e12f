"""The tables of a report: what each variant is worth, where it runs, and how it was searched for."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qconvert.core import number_format as fmt
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.latency import Latency
from qconvert.measure.mixed_result import MixedResult, PredictionLoss, SearchStep
from qconvert.measure.stats import summarize_latency
from qconvert.report import gates, metrics
from qconvert.report.metrics import missing_reason, missing_score_reason
from qconvert.report.model import MemoryUse, Report, VariantResult
from qconvert.report.table import MISSING, Footnotes, TextColumn, TextTable, number_columns

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
    "certainty": "points of top-1 weighted by FP32: its probability of each prediction that changed",
}


def overview_table(report: Report) -> TextTable:
    """Return a row for each variant: size, latency at its smallest batch, accuracy, gates."""
    scored = [variant.accuracy for variant in report.variants if variant.accuracy is not None]
    labelled = not scored or any(accuracy.top1 is not None for accuracy in scored)
    scores = (
        {"top-1": ("top1", fmt.percent), "Δ pp": ("change_pp", fmt.signed)}
        if labelled
        else {"agrees": ("agreement", fmt.percent), "SQNR dB": ("sqnr_db", fmt.decibels)}
    )
    rows = []
    for variant in report.variants:
        latency, speedup = (
            metrics.headline_latency(variant), metrics.headline_speedup(report, variant)
        )  # fmt: skip
        cells = []
        for field, write in scores.values():
            value = getattr(variant.accuracy, field, None)
            cells.append(MISSING if value is None else write(value))
        passed = metrics.passes_gates(report, variant)
        status = "baseline" if variant.precision == "fp32" else ""
        if passed is not None:
            status = gates.PASS if passed else gates.FAIL
        if variant.name == report.best:
            status = f"{status} {BEST_MARK}".strip()
        rows.append(
            (
                variant.name,
                fmt.megabytes(variant.engine.bytes) if variant.engine else MISSING,
                MISSING if latency is None else _median_cell(latency),
                MISSING if speedup is None else fmt.ratio(speedup),
                *cells,
                status,
            )
        )
    score, change = scores
    columns = (
        TextColumn("variant"),
        *number_columns("MB", "p50 ms"),
        TextColumn("speed", "right", rank=1),
        TextColumn(score, "right"),
        TextColumn(change, "right", rank=2),
        TextColumn("gate" if report.gates else ""),
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
        TextColumn("gate"),
        TextColumn("variant"),
        *number_columns("value", "limit"),
        TextColumn("result"),
    )
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
        ratio, base = metrics.size_ratio(report, variant), metrics.fp32_variant(report, variant)
        if variant.engine is None or ratio is None:
            size = ratio_cell = notes.missing(missing_reason(variant))
        else:
            size, ratio_cell = fmt.megabytes(variant.engine.bytes), fmt.ratio(ratio)
            if base is None or not base.engine:
                ratio_cell += notes.mark(COMPARED_WITH_FILE)
        cells = []
        for field in measured:
            used = getattr(memory, field)
            cells.append(
                notes.missing(missing_reason(variant, field, "memory"))
                if used is None
                else fmt.megabytes(used)
            )
        rows.append((variant.name, size, ratio_cell, *cells))
    titles = ("MB", "ratio", *(MEMORY_COLUMNS[field] for field in measured))
    return TextTable((TextColumn("variant"), *number_columns(*titles)), rows, "Size", notes.texts())


def latency_table(report: Report) -> TextTable:
    """Return a row for each engine and batch size, with calls on the device in their own column."""
    notes = Footnotes()
    with_device = any(
        latency.where == "device" for variant in report.variants for latency in variant.latency
    )
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        batches = sorted({latency.batch for latency in variant.latency if latency.samples_ms})
        for batch in batches:
            host = metrics.latency_at(variant, batch, "host")
            device = metrics.latency_at(variant, batch, "device")
            latency = host or device
            assert latency is not None
            device_cell = "" if device is None else fmt.ms(summarize_latency(device).median_ms)
            speedup = metrics.speedup(report, variant, latency)
            rows.append(
                (
                    variant.name,
                    str(batch),
                    _median_cell(host)
                    if host
                    else notes.missing(missing_reason(variant, "latency")),
                    *([device_cell] if with_device else []),
                    fmt.throughput(summarize_latency(latency).images_per_second),
                    notes.missing(_missing_speedup_reason(report, variant))
                    if speedup is None
                    else fmt.ratio(speedup),
                )
            )
        if not batches:
            missing = notes.missing(missing_reason(variant, "latency"))
            rows.append((variant.name, "", missing, *([""] if with_device else []), "", ""))
    titles = ("batch", "median ms", *(["device ms"] if with_device else []), "images/s", "speed-up")
    return TextTable(
        (TextColumn("variant"), *number_columns(*titles)), rows, "Latency", notes.texts()
    )


def _median_cell(latency: Latency) -> str:
    stats = summarize_latency(latency)
    return fmt.ms_with_spread(stats.median_ms, stats.spread_ms)


def _missing_speedup_reason(report: Report, variant: VariantResult) -> str:
    base = metrics.fp32_variant(report, variant)
    if base is None:
        return f"no fp32 engine of `{variant.backend}` to compare with"
    return f"`{base.name}` was not timed at this batch size"


def timing_table(report: Report) -> TextTable:
    """Return the statistics of every latency."""
    rows = []
    for variant in report.variants:
        for latency in variant.latency:
            if latency.samples_ms:
                stats = summarize_latency(latency)
                tail = map(fmt.ms, (stats.min_ms, stats.p95_ms, stats.p99_ms))
                batch, runs = str(latency.batch), str(stats.samples)
                rows.append(
                    (variant.name, batch, latency.where, _median_cell(latency), *tail, runs)
                )
    columns = (
        TextColumn("variant"),
        TextColumn("batch", "right"),
        TextColumn("where", rank=2),
        TextColumn("median ms", "right"),
        TextColumn("min", "right", rank=1),
        *(TextColumn(title, "right", rank=3) for title in ("p95", "p99", "runs")),
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
            reason = missing_score_reason(variant, column.field)
            row.append(notes.missing(reason) if cell is None else cell)
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
    header = (TextColumn("variant"), *number_columns(*(column.title for column in columns)))
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
    titles = number_columns("images", "FP32 right, %", "right, %", "Δ pp")
    columns = (TextColumn("variant"), TextColumn("class"), *titles)
    return TextTable(columns, rows, "Classes that changed most")


def class_name(report: Report, number: int) -> str:
    """Return the name of a class, or its number."""
    return (report.evidence.classes or {}).get(str(number), f"class {number}")


def placement_table(report: Report) -> TextTable:
    """Return the nodes of every engine by provider and by the precision they run in."""
    notes = Footnotes()
    rows = []
    for variant in report.variants:
        counts = {"by_provider": variant.by_provider, "by_precision": variant.by_precision}
        cells = []
        for field, nodes in counts.items():
            # No engine runs on no provider: an empty count is an unmeasured one.
            if nodes is None or (field == "by_provider" and not nodes):
                cells.append(notes.missing(missing_reason(variant, field, "latency")))
                continue
            ordered = sorted(nodes.items(), key=lambda item: (-item[1], item[0]))
            cells.append(
                ", ".join(f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in ordered)
            )
        of_all = f"{variant.quantized} of {variant.candidates}" if variant.candidates else ""
        rows.append((variant.name, *cells, of_all))
    columns = (
        TextColumn("variant"),
        TextColumn("nodes by provider", wrap=True),
        TextColumn("by precision", wrap=True),
        TextColumn("quantized", "right"),
    )
    return TextTable(columns, rows, "Where it runs", notes.texts())


def operator_table(report: Report) -> TextTable:
    """Return how many nodes of each operator are quantized."""
    rows = [
        (variant.name, op.op, str(op.nodes), str(op.quantized), str(op.nodes - op.quantized))
        for variant in report.variants
        for op in variant.operators
    ]
    titles = number_columns("nodes", "int8", "left")
    columns = (TextColumn("variant"), TextColumn("operator"), *titles)
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
        TextColumn("variant"),
        TextColumn("operator"),
        TextColumn("nodes", "right"),
        TextColumn("why", wrap=True),
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
        TextColumn("engine"),
        TextColumn("path"),
        TextColumn("sha256"),
        TextColumn("built in", "right"),
        TextColumn("built with", wrap=True),
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
    columns = (
        TextColumn("block"),
        *number_columns("compute %", "error removed %"),
        TextColumn("", rank=1),
    )
    title = f"Blocks by the error that each alone removes in float, {len(blocks)} of {len(result.gains)}"
    return TextTable(columns, rows, title)


def trial_table(result: MixedResult) -> TextTable:
    """Return the sets of float blocks that were tried, from none to the largest."""
    notes = Footnotes()
    loss = "loses pp" + notes.mark(LOSS_MEASURES[result.int8.search.by])
    confirmed_loss = "confirmed" + notes.mark(LOSS_MEASURES[result.by])
    steps = [result.int8, *result.steps]
    timed = any(step.ms is not None for step in steps)
    rows = []
    for step in steps:
        ms = "" if step.ms is None else fmt.ms(step.ms)
        chosen = result.chosen is not None and step.lifted == result.chosen.lifted
        rows.append(
            (
                str(len(step.lifted)),
                fmt.percent(100 * step.share),
                f"{step.distance:.5f}",
                f"{step.search.pp:.2f}",
                MISSING if step.confirmed is None else _loss_cell(step.confirmed),
                *([ms] if timed else []),
                BEST_MARK if chosen else "",
            )
        )
    titles = ("in float", "compute %", "output error", loss, confirmed_loss)
    columns = (*number_columns(*titles, *(["ms"] if timed else [])), TextColumn(""))
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
                MISSING if size is None else fmt.megabytes(size),
                notes.missing(result.untimed) if latency is None else fmt.ms(latency),
                "" if loss is None else _loss_cell(loss),
                "" if loss is None else fmt.percent(loss.agreement),
            )
        )
    columns = (TextColumn("precision"), *number_columns("MB", "p50 ms", "loses pp", "agrees %"))
    return TextTable(columns, rows, "Result", notes.texts())


def _loss_cell(loss: PredictionLoss) -> str:
    return f"{loss.pp:.2f} ± {loss.half_width_pp:.2f}"
