"""The report as one page that needs nothing else: no network, no other file.

All that comes from outside, as names of files, nodes and classes, is escaped by the templates.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from qconvert.core import number_format
from qconvert.core.sanitize import sanitize_text
from qconvert.measure import layer_errors
from qconvert.measure.layer_errors import LayerError
from qconvert.report import gates, layer_tables, table, tables
from qconvert.report.metrics import pareto_front
from qconvert.report.model import Report, VariantResult
from qconvert.report.table import TextColumn, TextTable, number_columns

WORST_LAYERS = 20
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


def render_html(report: Report, image_files: Mapping[str, bytes]) -> str:
    """Return the page; `pictures` are those that the report names, as far as they are there."""
    # Matplotlib takes longer to import than all the rest; who wants Markdown need not wait.
    from qconvert.report import charts

    page = (
        _templates()
        .get_template("report.html")
        .render(
            report=report,
            failed=[gates.describe_result(each) for each in report.gates if not each.passed],
            three=[
                each(report)
                for each in (tables.size_table, tables.latency_table, tables.accuracy_table)
            ],
            overview=tables.overview_table(report),
            limits=tables.gate_table(report),
            timings=tables.timing_table(report),
            bars=charts.bar_charts(report),
            trade_off=charts.trade_off_chart(report),
            limited=pareto_front(report).min_score is not None,
            behind=_dominated_variants(report),
            distributions=[*charts.latency_charts(report), charts.throughput_chart(report)],
            mixes=[*charts.search_charts(report)],
            mixed=tables.search_tables(report),
            placement=tables.placement_table(report),
            operators=_operator_table(report),
            left=tables.unquantized_table(report),
            by_depth=charts.layer_error_chart(report),
            layers=[_worst_layer_table(names, rows) for names, rows in _layers_int8_first(report)],
            maps=[each for each in report.evidence.feature_maps if each.picture in image_files],
            ranges=[(each, charts.range_histogram(each)) for each in report.evidence.ranges],
            methods={**charts.METHOD_COLOURS, "chosen": charts.CHOSEN_COLOUR},
            weights=[(each, charts.weight_chart(each)) for each in report.evidence.weights],
            changed=_changed_predictions(report),
            shifts=_class_shift_table(report),
            made=_provenance(report),
            engines=_engine_table(report),
            small=_thumbnails(report, image_files),
            source=lambda name: _data_url(name, image_files[name]),
        )
    )
    return re.sub(r"\n\s*\n+", "\n", page).strip() + "\n"


def _thumbnails(report: Report, pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Return the thumbnails that are there, by their images."""
    known = report.evidence.thumbnails
    return {each.image: each.picture for each in known if each.picture in pictures}


@cache
def _templates() -> Environment:
    loader = PackageLoader("qconvert.report")
    made = Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_finalize,
    )
    made.filters.update(prose=format_prose, cell=_cell, drawn=_drawn, db=_db, number=_number)
    return made


def _finalize(value: object) -> object:
    """Make control characters visible in whatever a template shows."""
    return sanitize_text(value) if type(value) is str else value


def format_prose(words: str) -> Markup:
    """Escape a sentence; what stands between backticks is code."""
    parts = words.split("`")
    if len(parts) % 2 == 0:
        return escape(sanitize_text(words))
    return Markup("").join(
        Markup("<code>{}</code>").format(sanitize_text(part))
        if index % 2
        else escape(sanitize_text(part))
        for index, part in enumerate(parts)
    )


def _cell(words: str) -> Markup:
    """Escape a cell; what failed stands out, and a bar of blocks is drawn as a bar."""
    if words.startswith(gates.FAIL):
        return Markup('<b class="bad">{}</b>').format(words)
    part = table.bar_fraction(words)
    if part is None:
        return format_prose(words)
    meter = '<span class="meter-of"><i class="meter" style="width:{}%"></i></span>'
    return Markup(meter).format(round(100 * part))  # noqa: S704 - a constant, filled with a number


def _drawn(svg: str) -> Markup:
    """Let a drawing of our own stand in the page as it is; its text is escaped already."""
    return Markup(svg)  # noqa: S704 - nothing but what `plots` drew comes here


def _data_url(name: str, data: bytes) -> str:
    kind = MEDIA_TYPES[name.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _db(value: float | None) -> str:
    return "" if value is None else number_format.with_db(value)


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _layers_int8_first(report: Report) -> list[tuple[str, Sequence[LayerError]]]:
    """Return the layers of variants, INT8 first, which is what goes wrong."""
    found = layer_tables.distinct_layers(report.variants)
    return sorted(found, key=lambda pair: all(each.precision != "int8" for each in pair[1]))


def _worst_layer_table(names: str, layers: Sequence[LayerError]) -> TextTable:
    """Return the layers that err most, by what they make alone."""
    found = layer_errors.worst_layers(layers, WORST_LAYERS)
    return layer_tables.layer_table(found, f"{names}: the layers that make the largest errors")


def _dominated_variants(report: Report) -> list[tuple[str, str]]:
    """Return who is no better than whom in speed, nor in answers."""
    placed = pareto_front(report).points
    return [(each.variant.name, each.dominated_by) for each in placed if each.dominated_by]


def _operator_table(report: Report) -> TextTable:
    """Return how many nodes of each operator are quantized, variant by variant."""
    rows = tuple(
        (
            variant.name,
            each.op,
            str(each.nodes),
            str(each.quantized),
            str(each.nodes - each.quantized),
        )
        for variant in report.variants
        for each in variant.operators
    )
    columns = (
        TextColumn("variant"),
        TextColumn("operator"),
        *number_columns("nodes", "int8", "left"),
    )
    return TextTable(columns, rows, "Coverage by operator")


def _changed_predictions(report: Report) -> list[tuple[VariantResult, list[dict[str, str]]]]:
    """Return the images with other answers, class numbers replaced by their names."""
    return [
        (
            variant,
            [
                {
                    "image": each.image,
                    "label": "" if each.label is None else _class_name(report, each.label),
                    "before": _class_name(report, each.before),
                    "after": _class_name(report, each.after),
                    "lead": f"{each.lead:.1f}",
                    "new_lead": f"{each.new_lead:.1f}",
                    "kind": _change_kind(each.label, each.before, each.after),
                }
                for each in variant.accuracy.changed
            ],
        )
        for variant in report.variants
        if variant.accuracy is not None and variant.accuracy.changed
    ]


def _change_kind(label: int | None, before: int, after: int) -> str:
    """Say whether a change lost or won a right answer."""
    if label is None:
        return ""
    return "lost" if label == before else "won" if label == after else "wrong either way"


def _class_shift_table(report: Report) -> TextTable:
    rows = tuple(
        (
            variant.name,
            _class_name(report, each.label),
            str(each.images),
            number_format.percent(each.before),
            number_format.percent(each.after),
            number_format.signed(each.after - each.before),
        )
        for variant in report.variants
        if variant.accuracy is not None
        for each in variant.accuracy.shifts
    )
    titles = number_columns("images", "FP32 right, %", "right, %", "Δ pp")
    columns = (TextColumn("variant"), TextColumn("class"), *titles)
    return TextTable(columns, rows, "Classes that changed most")


def _class_name(report: Report, number: int) -> str:
    return (report.evidence.classes or {}).get(str(number), f"class {number}")


def _provenance(report: Report) -> dict[str, str]:
    """Return how the report came to be, as names and values."""
    made = {"tool": report.tool, "made": report.created, **report.machine}
    for name, images in (("calibration", report.calibration), ("evaluation", report.evaluation)):
        if images is not None:
            listed = f", list {images.sha256[:12]}" if images.sha256 else ""
            made[name] = f"{number_format.count(images.count, 'image')} of `{images.path}`{listed}"
    if report.seconds:
        made["seconds"] = ", ".join(f"{name} {took:.1f}" for name, took in report.seconds.items())
    return made


def _engine_table(report: Report) -> TextTable:
    rows = tuple(
        (
            each.name,
            f"`{each.engine.path}`",
            each.engine.sha256[:12],
            f"{each.engine.build_seconds:.1f} s",
            ", ".join(f"{key} {value}" for key, value in each.engine.made_with.items()),
        )
        for each in report.variants
        if each.engine is not None
    )
    columns = (
        TextColumn("engine"), TextColumn("path"), TextColumn("sha256"), TextColumn("built in", "right"),
        TextColumn("made with", wrap=True),
    )  # fmt: skip
    return TextTable(columns, rows, "Engines")
