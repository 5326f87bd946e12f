"""The tables of a report: size, latency, accuracy, gates, placement, engines, layers."""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields

from qconvert.core import number_format as fmt
from qconvert.core.sanitize import sanitize_cell
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.latency import Latency, summarize_latency
from qconvert.measure.layer_errors import LayerError, layer_label, relative_error
from qconvert.report import gates, metrics
from qconvert.report.metrics import missing_reason, missing_score_reason
from qconvert.report.model import Report, VariantResult
from qconvert.report.table import (
    MISSING,
    Footnotes,
    TextTable,
    make_columns,
    optional_cell,
    text_bar,
)

BASELINE_ROW = "FP32 ONNX"
BEST_MARK = "◆"
MAX_REASONS = 12
HASH_DIGITS = 12
# Fields of Accuracy with their titles and formats.
SCORES: dict[str, tuple[str, Callable[[float], str]]] = {
    "top1": ("top-1", fmt.percent),
    "precision": ("precision", fmt.percent),
    "recall": ("recall", fmt.percent),
    "f1": ("F1", fmt.percent),
    "change_pp": ("change pp", fmt.signed),
    "agreement": ("agrees", fmt.percent),
    "sqnr_db": ("SQNR dB", fmt.decibels),
    "kl": ("KL", fmt.divergence),
    "cosine": ("cosine", "{:.5f}".format),
}
LABELLED_SCORES = ("top1", "precision", "recall", "f1", "change_pp", "agreement")
# Of the metrics of a task those that fit; the JSON has all of them.
TASK_SCORES = {
    "detect": ("map_mask", "map50_mask", "map", "map50", "map75", "map_small", "ar100"),
    "segment": ("miou", "dice", "pixel_accuracy"),
    "embed": ("recall1", "recall5", "cosine"),
}
# More do not fit into 80 columns beside the change and the agreement.
MAX_TASK_SCORES = 5
UNLABELLED_SCORES = ("agreement", "sqnr_db", "kl", "cosine")


def overview_table(report: Report) -> TextTable:
    """Return a row for each variant: size, latency at its smallest batch, accuracy, gates."""
    scored = [variant.accuracy for variant in report.variants if variant.accuracy is not None]
    scores = {name: SCORES[name][0] for name in UNLABELLED_SCORES[:2]}
    if not scored or any(metrics.score_of(a, "primary") is not None for a in scored):
        scores = {"primary": metrics.primary_title(report), "change_pp": "Δ pp"}
    rows = []
    for variant in report.variants:
        passed = [gate.passed for gate in report.gates if gate.variant == variant.name]
        status = "baseline" if variant.precision == "fp32" else ""
        if passed:
            status = gates.PASS if all(passed) else gates.FAIL
        if variant.name == report.best:
            status = f"{status} {BEST_MARK}".strip()
        size = variant.engine.bytes if variant.engine is not None else None
        accuracy = variant.accuracy
        cells = (
            optional_cell(size, fmt.megabytes, MISSING),
            optional_cell(metrics.headline_latency(variant), _median_cell, MISSING),
            optional_cell(metrics.headline_speedup(report, variant), fmt.ratio, MISSING),
            *(optional_cell(metrics.score_of(accuracy, n), _format_of(n), MISSING) for n in scores),
        )
        rows.append((variant.name, *cells, status))
    titles = ("variant", "MB", "p50 ms", "speed", *scores.values(), "gate" if report.gates else "")
    return TextTable(make_columns("l r r r1 r r2 l", *titles), rows, "Variants")


def gate_table(report: Report) -> TextTable:
    """Return a row for each gate and variant."""
    notes, rows = Footnotes(), []
    for gate in report.gates:
        value, limit = gates.format_gate(gate)
        mark = notes.mark(gate.why) if gate.why else ""
        result = gates.PASS if gate.passed else gates.FAIL
        rows.append((gate.name, gate.variant, value + mark, limit, result))
    columns = make_columns("l l r r l", "gate", "variant", "value", "limit", "result")
    return TextTable(columns, rows, "Gates", notes.texts())


def size_table(report: Report) -> TextTable:
    """Return megabytes on disk, their ratio to fp32, and memory at run time where measured."""
    notes = Footnotes()
    peaks = [v.memory.peak_rss_bytes if v.memory is not None else None for v in report.variants]
    with_memory = any(peak is not None for peak in peaks)
    rows = [(BASELINE_ROW, fmt.megabytes(report.baseline_bytes), "", *[""] * with_memory)]
    for variant, peak in zip(report.variants, peaks, strict=True):
        base, reason = metrics.fp32_variant(report, variant), missing_reason(variant)
        ratio = metrics.size_ratio(report, variant)
        size = variant.engine.bytes if variant.engine is not None and ratio is not None else None
        cells = [notes.cell(size, fmt.megabytes, reason), notes.cell(ratio, fmt.ratio, reason)]
        if size is not None and (base is None or base.engine is None):
            cells[1] += notes.mark(
                "against the FP32 ONNX file: no fp32 engine of this backend was built"
            )
        if with_memory:
            reason = missing_reason(variant, "peak_rss_bytes", "memory")
            cells.append(notes.cell(peak, fmt.megabytes, reason))
        rows.append((variant.name, *cells))
    titles = ("variant", "MB", "ratio", *(["memory MB"] if with_memory else []))
    columns = make_columns("l", *titles)
    return TextTable(columns, rows, "Size", notes.texts())


def latency_table(report: Report, *, bars: bool = False) -> TextTable:
    """Return a row for each engine and batch size; bars compare the engines at one batch size."""
    notes = Footnotes()
    latencies = [latency for variant in report.variants for latency in variant.latency]
    with_device = any(latency.where == "device" for latency in latencies)
    slowest: dict[int, float] = {}
    for latency in latencies:
        if latency.where == "host" and latency.samples_ms:
            ms = summarize_latency(latency).median_ms
            slowest[latency.batch] = max(ms, slowest.get(latency.batch, 0.0))
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
            headline = host or device
            assert headline is not None
            stats = summarize_latency(headline)
            cells = [str(batch), notes.cell(host, _median_cell, reason)]
            if with_device:
                cells.append(fmt.ms(summarize_latency(device).median_ms) if device else "")
            speedup = metrics.speedup(report, variant, headline)
            cells.append(fmt.throughput(stats.images_per_second))
            cells.append(notes.cell(speedup, fmt.ratio, not_compared))
            if bars:
                share = stats.median_ms / slowest[batch] if host and stats.median_ms else 0.0
                cells.append(text_bar(share))
            rows.append((variant.name, *cells))
        if not batches:
            missing = notes.cell(None, str, reason)
            rows.append((variant.name, "", missing, *[""] * (2 + with_device + bars)))
    titles = ("batch", "median ms", *(["device ms"] if with_device else []), "images/s", "speed-up")
    bar_column = make_columns("l9", "time") if bars else ()
    columns = (*make_columns("l", "variant", *titles), *bar_column)
    return TextTable(columns, rows, "Latency", notes.texts())


def _median_cell(latency: Latency) -> str:
    stats = summarize_latency(latency)
    return fmt.ms_with_spread(stats.median_ms, stats.spread_ms)


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
    titles = ("variant", "batch", "where", "median ms", "min", "p95", "p99", "runs")
    columns = make_columns("l r l2 r r1 r3 r3 r3", *titles)
    return TextTable(columns, rows, "Timings")


def gpu_table(report: Report) -> TextTable:
    """Return what GPUs do under the engines; no rows if nothing ran on one."""
    notes, rows = Footnotes(), list[tuple[str, ...]]()
    for variant in report.variants:
        for latency in variant.latency:
            if (load := latency.gpu) is None:
                continue
            device, graph = (
                metrics.latency_at(variant, latency.batch, where) for where in ("device", "graph")
            )
            missing = "NVML does not tell it here"
            clock = notes.cell(load.clock_mhz, "{:d}".format, missing)
            if load.throttled:
                clock += notes.mark(f"held down by its {' and '.join(load.throttled)}")
            cells = (
                str(latency.batch),
                optional_cell(device, _median_cell),
                notes.cell(graph, _median_cell, f"no CUDA graph: {load.no_graph}"),
                f"{load.streams}",
                fmt.throughput(load.images_per_second),
                notes.cell(load.millijoules_per_image, "{:.3g}".format, missing),
                notes.cell(load.power_watts, "{:.0f}".format, missing),
                clock,
                fmt.megabytes(load.device_bytes),
            )
            rows.append((variant.name, *cells))
    titles = ("batch", "GPU ms", "graph ms", "streams", "images/s", "mJ/image", "W", "MHz")
    columns = make_columns("l r r r1 r2 r r r1 r1", "variant", *titles, "memory MB")
    return TextTable(columns, rows, "GPU", notes.texts())


def accuracy_table(report: Report) -> TextTable:
    """Return the scores of the task in percent; without truth, agreement and output errors."""
    notes, rows = Footnotes(), []
    scored = [variant for variant in report.variants if variant.accuracy is not None]
    accuracies = [*filter(None, (*(v.accuracy for v in scored), report.baseline))]
    labelled = any(metrics.score_of(accuracy, "primary") is not None for accuracy in accuracies)
    scores: Sequence[str] = _labelled_scores(accuracies)
    if not labelled:
        measured = [n for n in UNLABELLED_SCORES if any(_score_cell(a, n) for a in accuracies)]
        scores = measured or ("top1", "agreement")
    baseline_cells = [_score_cell(report.baseline, name) or "" for name in scores]
    if any(baseline_cells):
        rows.append([BASELINE_ROW, *baseline_cells])
    for variant in report.variants:
        accuracy, row = variant.accuracy, [variant.name]
        if accuracy is not None and accuracy.measured_on == "cpu-simulation":
            row[0] += notes.mark(
                "the same graph on ONNX Runtime's CPU: the engine does not run here"
            )
        for name in scores:
            reason = missing_score_reason(variant, name)
            row.append(notes.cell(_score_cell(accuracy, name), str, reason))
        rows.append(row)
    title = "Accuracy"
    most = max(accuracies, key=lambda accuracy: accuracy.images, default=None)
    if most is not None and most.images:
        with_label = most.labelled if labelled else None
        title += f", % of {fmt.image_count(most.images, with_label)}"
        if with_label and with_label < most.images:
            title += " (agrees: of all)"
    if scored and not labelled:
        title += notes.mark(missing_score_reason(scored[0], "top1"))
    titles = (SCORES[name][0] if name in SCORES else metrics.metric_title(name) for name in scores)
    return TextTable(make_columns("l", "variant", *titles), rows, title, notes.texts())


def _labelled_scores(accuracies: Sequence[Accuracy]) -> Sequence[str]:
    """Return the columns of an accuracy with truth: metrics of a task, or those of a classifier."""
    names = dict.fromkeys(name for accuracy in accuracies for name in accuracy.metrics)
    task = next((accuracy.task for accuracy in accuracies), "classify")
    if task == "classify" or not names:
        return LABELLED_SCORES
    shown = [name for name in TASK_SCORES.get(task, ()) if name in names][:MAX_TASK_SCORES]
    return (*(shown or names), "change_pp", "agreement")


def _format_of(name: str) -> Callable[[float], str]:
    return SCORES[name][1] if name in SCORES else fmt.percent


def _score_cell(accuracy: Accuracy | None, name: str) -> str | None:
    value = metrics.score_of(accuracy, name)
    if name == "change_pp" and accuracy is not None and value is not None:
        return fmt.change_with_interval(value, accuracy.half_width_pp)
    return None if value is None else _format_of(name)(value)


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
    scored = next((v.accuracy.task for v in report.variants if v.accuracy is not None), "classify")
    score = {"detect": "AP", "segment": "IoU"}.get(scored, "right")
    titles = ("variant", "class", "images", f"FP32 {score}, %", f"{score}, %", "Δ pp")
    columns = make_columns("l l", *titles)
    return TextTable(columns, rows, "Classes that changed most")


def class_name(report: Report, number: int) -> str:
    """Return the name of a class, or its number."""
    return (report.evidence.classes or {}).get(str(number), f"class {number}")


def placement_table(report: Report) -> TextTable:
    """Return the nodes of every engine by provider and by the precision they run in."""
    notes, rows = Footnotes(), []

    def count_cell(nodes: dict[str, int]) -> str:
        ordered = sorted(nodes.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{n} {name.removesuffix('ExecutionProvider')}" for name, n in ordered)

    for variant in report.variants:
        # every engine runs on some provider: an empty count was not measured
        counts = {"by_provider": variant.by_provider or None, "by_precision": variant.by_precision}
        cells = [
            notes.cell(nodes, count_cell, missing_reason(variant, field, "latency"))
            for field, nodes in counts.items()
        ]
        of_all = f"{variant.quantized} of {variant.candidates}" if variant.candidates else ""
        rows.append((variant.name, *cells, of_all))
    titles = ("variant", "nodes by provider", "by precision", "quantized")
    columns = make_columns("l w w", *titles)
    return TextTable(columns, rows, "Where it runs", notes.texts())


def operator_table(report: Report) -> TextTable:
    """Return how many nodes of each operator are quantized."""
    rows = [
        (variant.name, op.op, str(op.nodes), str(op.quantized), str(op.nodes - op.quantized))
        for variant in report.variants
        for op in variant.operators
    ]
    columns = make_columns("l l", "variant", "operator", "nodes", "int8", "left")
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
    columns = make_columns("l l r w", "variant", "operator", "nodes", "why")
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
    columns = make_columns("l l l r w", "engine", "path", "sha256", "built in", "built with")
    return TextTable(columns, rows, "Engines")


def provenance(report: Report) -> dict[str, str]:
    """Return everything needed to repeat the run, as names and values."""
    facts = {"tool": report.tool, "created": report.created, **report.machine}
    for name, images in (("calibration", report.calibration), ("evaluation", report.evaluation)):
        if images is not None:
            digest = f", list {images.sha256[:HASH_DIGITS]}" if images.sha256 else ""
            facts[name] = f"{fmt.count(images.count, 'image')} of `{images.path}`{digest}"
    if report.seconds:
        facts["seconds"] = ", ".join(f"{step} {took:.1f}" for step, took in report.seconds.items())
    return facts


def layer_table(layers: Sequence[LayerError], title: str = "Layers") -> TextTable:
    """Return a row for each layer: the arriving error, the error made, and the clipped share.

    The bars compare the finite errors; an infinite one has a full bar.
    """
    errors = [relative_error(layer) for layer in layers]
    largest = max(filter(math.isfinite, errors), default=0.0) or 1.0
    rows = [
        (
            layer_label(layer),
            layer.op,
            layer.precision,
            optional_cell(layer.arriving_db, fmt.decibels),
            optional_cell(layer.made_db, fmt.decibels),
            text_bar(error / largest),
            optional_cell(layer.cosine, "{:.5f}".format),
            fmt.small_percent(layer.clipped),
            fmt.small_percent(layer.saturated),
        )
        for layer, error in zip(layers, errors, strict=True)
    ]
    titles = ("layer", "operator", "in", "arrives dB", "made dB", "error made", "cosine")
    columns = make_columns("l l4 l2 r r l1 r3 r5 r6", *titles, "clipped %", "saturated %")
    return TextTable(columns, rows, title)


def distinct_layers(variants: Sequence[VariantResult]) -> list[tuple[str, Sequence[LayerError]]]:
    """Return the layers of all variants; those of equal graphs once, under all their names."""
    names: dict[Sequence[LayerError], list[str]] = {}
    for variant in variants:
        if variant.layers:
            names.setdefault(variant.layers, []).append(variant.name)
    return [(", ".join(same), layers) for layers, same in names.items()]


def layers_csv(layers: Mapping[str, Sequence[LayerError]]) -> str:
    """Return a line for each layer of each variant; what is unknown is empty.

    `inf` is the SQNR of equal tensors, `-inf` that of tensors which are not finite. A name that a
    spreadsheet would compute is quoted.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("variant", *(field.name for field in fields(LayerError))))
    for variant, errors in layers.items():
        for error in errors:
            cells = (variant, *astuple(error))
            writer.writerow(sanitize_cell(x) if isinstance(x, str) else x for x in cells)
    return text.getvalue()
