"""The report as one page that needs nothing else: no network, no other file.

All that comes from outside, as names of files, nodes and classes, is escaped by the templates.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from qconvert.measure.layers import Layer
from qconvert.plain import plain
from qconvert.report import bars, gates, layer_errors, mixing, numerals, overview, placement, tables
from qconvert.report.front import front
from qconvert.report.model import Report, Variant
from qconvert.report.sheet import Column, Sheet, right

WORST = 20
KINDS = {"png": "image/png", "jpg": "image/jpeg"}


def html(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the page; `pictures` are those that the report names, as far as they are there."""
    # Matplotlib takes longer to import than all the rest; who wants Markdown need not wait.
    from qconvert.report import charts

    page = (
        _templates()
        .get_template("report.html")
        .render(
            report=report,
            failed=[gates.finding(each) for each in report.gates if not each.passed],
            three=[each(report) for each in (tables.size, tables.latency, tables.accuracy)],
            overview=overview.overview(report),
            limits=overview.limits(report),
            timings=overview.timings(report),
            bars=bars.charts(report),
            trade_off=charts.trade_off(report),
            limited=front(report).limit is not None,
            behind=_behind(report),
            distributions=[*charts.distributions(report), charts.throughput(report)],
            mixes=[*charts.mixes(report)],
            mixed=mixing.sheets(report),
            placement=placement.placement(report),
            operators=_operators(report),
            left=placement.left(report),
            by_depth=charts.by_depth(report),
            layers=[_worst(names, rows) for names, rows in _by_precision(report)],
            maps=[each for each in report.evidence.feature_maps if each.picture in pictures],
            ranges=[(each, charts.of_range(each)) for each in report.evidence.ranges],
            methods={**charts.METHODS, "chosen": charts.CHOSEN},
            weights=[(each, charts.of_weights(each)) for each in report.evidence.weights],
            changed=_changed(report),
            shifts=_shifts(report),
            made=_made(report),
            engines=_engines(report),
            small=_small(report, pictures),
            source=lambda name: _source(name, pictures[name]),
        )
    )
    return re.sub(r"\n\s*\n+", "\n", page).strip() + "\n"


def _small(report: Report, pictures: Mapping[str, bytes]) -> dict[str, str]:
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
        finalize=_finalized,
    )
    made.filters.update(prose=prose, cell=_cell, drawn=_drawn, db=_db, number=_number)
    return made


def _finalized(value: object) -> object:
    """Make control characters visible in whatever a template shows."""
    return plain(value) if type(value) is str else value


def prose(words: str) -> Markup:
    """Escape a sentence; what stands between backticks is code."""
    parts = words.split("`")
    if len(parts) % 2 == 0:
        return escape(plain(words))
    return Markup("").join(
        Markup("<code>{}</code>").format(plain(part)) if index % 2 else escape(plain(part))
        for index, part in enumerate(parts)
    )


def _cell(words: str) -> Markup:
    """Escape a cell; what failed stands out, and a bar of blocks is drawn as a bar."""
    if words.startswith(gates.FAIL):
        return Markup('<b class="bad">{}</b>').format(words)
    part = layer_errors.part_of(words)
    if part is None:
        return prose(words)
    meter = '<span class="meter-of"><i class="meter" style="width:{}%"></i></span>'
    return Markup(meter).format(round(100 * part))  # noqa: S704 - a constant, filled with a number


def _drawn(svg: str) -> Markup:
    """Let a drawing of our own stand in the page as it is; its text is escaped already."""
    return Markup(svg)  # noqa: S704 - nothing but what `plots` drew comes here


def _source(name: str, data: bytes) -> str:
    kind = KINDS[name.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _db(value: float | None) -> str:
    return "" if value is None else numerals.with_db(value)


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _by_precision(report: Report) -> list[tuple[str, Sequence[Layer]]]:
    """Return the layers of variants, INT8 first, which is what goes wrong."""
    found = layer_errors.distinct(report.variants)
    return sorted(found, key=lambda pair: all(each.precision != "int8" for each in pair[1]))


def _worst(names: str, layers: Sequence[Layer]) -> Sheet:
    """Return the layers that err most, by what they make alone."""
    found = layer_errors.worst(layers, WORST)
    return layer_errors.layers(found, f"{names}: the layers that make the largest errors")


def _behind(report: Report) -> list[tuple[str, str]]:
    """Return who is no better than whom in speed, nor in answers."""
    placed = front(report).placed
    return [(each.variant.name, each.behind) for each in placed if each.behind]


def _operators(report: Report) -> Sheet:
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
    columns = (Column("variant"), Column("operator"), *right("nodes", "int8", "left"))
    return Sheet("Coverage by operator", columns, rows)


def _changed(report: Report) -> list[tuple[Variant, list[dict[str, str]]]]:
    """Return the images with other answers, class numbers replaced by their names."""
    return [
        (
            variant,
            [
                {
                    "image": each.image,
                    "label": "" if each.label is None else _name(report, each.label),
                    "before": _name(report, each.before),
                    "after": _name(report, each.after),
                    "lead": f"{each.lead:.1f}",
                    "new_lead": f"{each.new_lead:.1f}",
                    "kind": _kind(each.label, each.before, each.after),
                }
                for each in variant.accuracy.changed
            ],
        )
        for variant in report.variants
        if variant.accuracy is not None and variant.accuracy.changed
    ]


def _kind(label: int | None, before: int, after: int) -> str:
    """Say whether a change lost or won a right answer."""
    if label is None:
        return ""
    return "lost" if label == before else "won" if label == after else "wrong either way"


def _shifts(report: Report) -> Sheet:
    rows = tuple(
        (
            variant.name,
            _name(report, each.label),
            str(each.images),
            numerals.percent(each.before),
            numerals.percent(each.after),
            numerals.signed(each.after - each.before),
        )
        for variant in report.variants
        if variant.accuracy is not None
        for each in variant.accuracy.shifts
    )
    titles = right("images", "FP32 right, %", "right, %", "Δ pp")
    return Sheet("Classes that changed most", (Column("variant"), Column("class"), *titles), rows)


def _name(report: Report, number: int) -> str:
    return (report.evidence.classes or {}).get(str(number), f"class {number}")


def _made(report: Report) -> dict[str, str]:
    """Return how the report came to be, as names and values."""
    made = {"tool": report.tool, "made": report.created, **report.machine}
    for name, images in (("calibration", report.calibration), ("evaluation", report.evaluation)):
        if images is not None:
            listed = f", list {images.sha256[:12]}" if images.sha256 else ""
            made[name] = f"{numerals.count(images.count, 'image')} of `{images.path}`{listed}"
    if report.seconds:
        made["seconds"] = ", ".join(f"{name} {took:.1f}" for name, took in report.seconds.items())
    return made


def _engines(report: Report) -> Sheet:
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
        Column("engine"), Column("path"), Column("sha256"), Column("built in", "right"),
        Column("made with", wrap=True),
    )  # fmt: skip
    return Sheet("Engines", columns, rows)
