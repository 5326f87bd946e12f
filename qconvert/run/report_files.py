"""Read and write the report of a run: JSON, Markdown, HTML, the table of layers, the model card."""

from dataclasses import replace
from pathlib import Path

from qconvert import __version__
from qconvert.core import onnx_io
from qconvert.core.atomic import write_text
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.measure.machine import describe_machine
from qconvert.report import json_file
from qconvert.report.html import render_html
from qconvert.report.layer_tables import layers_csv
from qconvert.report.markdown import render_markdown
from qconvert.report.model import Report, VariantResult
from qconvert.report.model_card import render_card
from qconvert.report.verdict import conclude
from qconvert.run.report_builder import engine_info, timestamp
from qconvert.run.run_folder import CARD, ENGINES, HTML, LAYERS, MARKDOWN, REPORT, RunFolder
from qconvert.run.targets import Target


def judge_and_store(report: Report, config: Config, target: Target) -> Report:
    """Return the report judged by the limits of now; the run keeps it judged by its own."""
    if target.run is not None:
        store_report(conclude(report, target.run.settings().gate), target)
    return conclude(report, config.gate)


def without_reason(row: VariantResult, name: str) -> VariantResult:
    """Return the row without the reason why `name` was not measured."""
    reasons = {key: why for key, why in row.unmeasured.items() if key != name}
    return replace(row, unmeasured=reasons)


def with_reason(row: VariantResult, name: str, why: str) -> VariantResult:
    """Return the row with the reason why `name` was not measured."""
    return replace(row, unmeasured={**row.unmeasured, name: why})


def read_report(target: Target) -> Report:
    """Return the report of a run as it is, or one of loose engines in which nothing is measured."""
    if target.run is not None:
        file = target.run.root / REPORT
        if not file.is_file():
            raise UsageError(
                f"`{target.run.root}` has no report yet: it was not built to the end",
                hint=f"`qconvert build --from {target.run.root}` goes on",
            )
        return _with_all_engines(json_file.load(file), target)
    return Report(
        tool=f"qconvert {__version__}",
        created=timestamp(),
        model=str(target.model),
        command="",
        config={},
        machine=describe_machine(),
        baseline=None,
        baseline_bytes=sum(each.stat().st_size for each in onnx_io.model_files(target.model)),
        variants=tuple(
            VariantResult(
                name, each.backend, each.precision, engine_info(each, str(each.folder), cached=True)
            )
            for name, each in target.engines.items()
        ),
    )


def _with_all_engines(report: Report, target: Target) -> Report:
    """Return the report with a row for every engine that the run has, and for no other."""
    rows = {each.name: each for each in report.variants if each.engine is not None}
    found = []
    for name, each in target.engines.items():
        info = engine_info(each, f"{ENGINES}/{each.folder.name}", cached=True)
        known = rows.get(name)
        # A build that was stopped may have put another engine there.
        same = known is not None and known.engine and known.engine.sha256 == info.sha256
        found.append(
            known if known and same else VariantResult(name, each.backend, each.precision, info)
        )
    return replace(report, variants=tuple(found))


def store_report(report: Report, target: Target) -> Report:
    """Write a report into the run that it is about, in every form; each file appears whole."""
    if target.run is not None:
        write_report(report, target.run)
    return report


def write_report(report: Report, run: RunFolder) -> None:
    """Write a report into a run's folder in every form."""
    write_text(run.root / REPORT, json_file.dumps(report))
    write_text(run.root / MARKDOWN, render_markdown(report))
    write_text(run.root / HTML, render_html(report, report_images(report, run.root)))
    known = {each.name: each.layers for each in report.variants if each.layers}
    if known:
        write_text(run.root / LAYERS, layers_csv(known))
    if report.best:
        write_text(run.root / CARD, render_card(report))
    else:
        (run.root / CARD).unlink(missing_ok=True)


def report_images(report: Report, folder: Path) -> dict[str, bytes]:
    """Return the pictures that a report names, as far as they lie in its folder."""
    shown = report.evidence
    names = {each.picture for each in shown.feature_maps}
    names |= {each.picture for each in shown.thumbnails}
    inside = (name for name in names if (folder / name).resolve().is_relative_to(folder.resolve()))
    return {name: (folder / name).read_bytes() for name in inside if (folder / name).is_file()}
