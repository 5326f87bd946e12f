"""The report as one self-contained page that needs no network and no other file.

The templates escape every name of a file, a node or a class.
"""

import base64
import re
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from qconvert.core import number_format as fmt
from qconvert.core.sanitize import sanitize_text
from qconvert.measure.layer_errors import worst_layers
from qconvert.report import gates, search_tables, tables
from qconvert.report.chain import chain_table
from qconvert.report.metrics import pareto_front
from qconvert.report.model import Report
from qconvert.report.table import bar_fraction


def render_html(report: Report, image_files: Mapping[str, bytes]) -> str:
    """Return the page; `image_files` are those that the report names, as far as they exist."""
    # Matplotlib takes longer to import than all the rest, and Markdown does not need it.
    from qconvert.report import charts

    # The layers with the largest errors of their own, INT8 first.
    layers = [
        tables.layer_table(
            worst_layers(errors, 20), f"{names}: the layers that make the largest errors"
        )
        for names, errors in sorted(
            tables.distinct_layers(report.variants),
            key=lambda pair: all(layer.precision != "int8" for layer in pair[1]),
        )
    ]
    images = {}
    for name, data in image_files.items():
        media_type = {"png": "image/png", "jpg": "image/jpeg"}[name.rpartition(".")[2]]
        images[name] = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    page = ENVIRONMENT.get_template("report.html").render(
        report=report,
        tables=tables,
        chain_table=chain_table,
        search_tables=search_tables,
        charts=charts,
        front=pareto_front(report),
        layers=layers,
        images=images,
        thumbnails={
            (row.variant, row.image): images.get(row.picture) for row in report.evidence.thumbnails
        },
    )
    return re.sub(r"\n\s*\n+", "\n", page).strip() + "\n"


def prose(sentence: str) -> Markup:
    """Escape a sentence; text between backticks becomes code."""
    parts = [escape(sanitize_text(part)) for part in sentence.split("`")]
    if len(parts) % 2 == 0:
        return Markup("`").join(parts)
    parts[1::2] = [Markup("<code>{}</code>").format(code) for code in parts[1::2]]
    return Markup("").join(parts)


def _cell(text: str) -> Markup:
    """Escape a cell; failures are highlighted, and bars of block characters become HTML bars."""
    if text.startswith(gates.FAIL):
        return Markup('<b class="bad">{}</b>').format(text)
    fraction = bar_fraction(text)
    if fraction is None:
        return prose(text)
    meter = '<span class="meter-of"><i class="meter" style="width:{}%"></i></span>'
    return Markup(meter).format(round(100 * fraction))  # noqa: S704 - a constant and a number


ENVIRONMENT = Environment(
    loader=PackageLoader("qconvert.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    # Make control characters visible in whatever a template shows.
    finalize=lambda value: sanitize_text(value) if type(value) is str else value,
)
ENVIRONMENT.filters.update(
    prose=prose,
    cell=_cell,
    # Our own drawings, whose text is escaped already.
    svg=Markup,
    db=fmt.with_db,
    number=lambda value: f"{value:.4g}".replace("-", "−"),
)
