"""The report as one page that needs nothing else: no network, no other file.

The templates escape every name of a file, a node or a class.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from qconvert.core import number_format as fmt
from qconvert.core.sanitize import sanitize_text
from qconvert.measure.layer_errors import LayerError, worst_layers
from qconvert.report import gates, tables
from qconvert.report.metrics import pareto_front
from qconvert.report.model import Report
from qconvert.report.table import TextTable, bar_fraction

WORST_LAYERS = 20
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


def render_html(report: Report, image_files: Mapping[str, bytes]) -> str:
    """Return the page; `image_files` are those that the report names, as far as they exist."""
    # Matplotlib takes longer to import than all the rest, and Markdown does not need it.
    from qconvert.report import charts

    evidence, front = report.evidence, pareto_front(report)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            failed=sum(not gate.passed for gate in report.gates),
            gates=tables.gate_table(report),
            overview=tables.overview_table(report),
            size_latency_accuracy=[
                tables.size_table(report),
                tables.latency_table(report),
                tables.accuracy_table(report),
            ],
            timings=tables.timing_table(report),
            bars=charts.bar_charts(report),
            trade_off=charts.trade_off_chart(front),
            limited=front.min_score is not None,
            dominated=[point for point in front.points if point.dominated_by],
            latency_charts=[*charts.latency_charts(report), charts.throughput_chart(report)],
            search_charts=charts.search_charts(report),
            search_tables=tables.search_tables(report),
            placement=tables.placement_table(report),
            operators=tables.operator_table(report),
            unquantized=tables.unquantized_table(report),
            by_depth=charts.layer_error_chart(report),
            layers=_worst_layer_tables(report),
            maps=[row for row in evidence.feature_maps if row.picture in image_files],
            ranges=[(row, charts.range_histogram(row)) for row in evidence.ranges],
            methods={**charts.METHOD_COLOURS, "chosen": charts.CHOSEN_COLOUR},
            weights=[(row, charts.weight_chart(row)) for row in evidence.weights],
            changed=[v for v in report.variants if v.accuracy and v.accuracy.changed],
            class_name=lambda number: tables.class_name(report, number),
            classes=tables.class_table(report),
            provenance=tables.provenance(report),
            engines=tables.engine_table(report),
            thumbnails={
                thumbnail.image: thumbnail.picture
                for thumbnail in evidence.thumbnails
                if thumbnail.picture in image_files
            },
            data_url=lambda name: _data_url(name, image_files[name]),
        )
    )
    return re.sub(r"\n\s*\n+", "\n", page).strip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qconvert.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        # Make control characters visible in whatever a template shows.
        finalize=lambda value: sanitize_text(value) if type(value) is str else value,
    )
    environment.filters.update(
        prose=_prose,
        cell=_cell,
        # Our own drawings, whose text is escaped already.
        svg=Markup,
        db=fmt.with_db,
        number=lambda value: f"{value:.4g}".replace("-", "−"),
    )
    return environment


def _prose(sentence: str) -> Markup:
    """Escape a sentence; what stands between backticks is code."""
    parts = [escape(sanitize_text(part)) for part in sentence.split("`")]
    if len(parts) % 2 == 0:
        return Markup("`").join(parts)
    parts[1::2] = [Markup("<code>{}</code>").format(code) for code in parts[1::2]]
    return Markup("").join(parts)


def _cell(text: str) -> Markup:
    """Escape a cell; a failure stands out, and a bar of blocks becomes a bar."""
    if text.startswith(gates.FAIL):
        return Markup('<b class="bad">{}</b>').format(text)
    fraction = bar_fraction(text)
    if fraction is None:
        return _prose(text)
    meter = '<span class="meter-of"><i class="meter" style="width:{}%"></i></span>'
    return Markup(meter).format(round(100 * fraction))  # noqa: S704 - a constant and a number


def _data_url(name: str, data: bytes) -> str:
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _worst_layer_tables(report: Report) -> list[TextTable]:
    """Return the layers with the largest errors of their own, INT8 first."""

    def without_int8(named: tuple[str, Sequence[LayerError]]) -> bool:
        return all(layer.precision != "int8" for layer in named[1])

    return [
        tables.layer_table(
            worst_layers(layers, WORST_LAYERS), f"{names}: the layers that make the largest errors"
        )
        for names, layers in sorted(tables.distinct_layers(report.variants), key=without_int8)
    ]
