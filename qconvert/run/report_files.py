"""The report of a target: read from its run, updated with new measurements, written in each form."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from qconvert import __version__
from qconvert.core import onnx_io
from qconvert.core.atomic import write_text
from qconvert.core.config import GateConfig
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


def read_report(target: Target) -> Report:
    """Return the report of a run, or an empty one of engines that belong to no run."""
    if target.run is not None:
        file = target.run.root / REPORT
        if not file.is_file():
            raise UsageError(
                f"`{target.run.root}` has no report yet: its build was interrupted",
                hint=f"`qconvert build --from {target.run.root}` resumes it",
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
        baseline_bytes=sum(file.stat().st_size for file in onnx_io.model_files(target.model)),
        variants=tuple(
            VariantResult(
                name,
                engine.backend,
                engine.precision,
                engine_info(engine, str(engine.folder), cached=True),
            )
            for name, engine in target.engines.items()
        ),
    )


def judge_and_store(report: Report, limits: GateConfig, target: Target) -> Report:
    """Return the report judged by these limits; the run stores it judged by its own."""
    if target.run is not None:
        write_report(conclude(report, target.run.settings().gate), target.run)
    return conclude(report, limits)


def write_report(report: Report, run: RunFolder) -> None:
    """Write a report into the folder of a run in every form; each file appears whole."""
    write_text(run.root / REPORT, json_file.dumps(report))
    write_text(run.root / MARKDOWN, render_markdown(report))
    write_text(run.root / HTML, render_html(report, report_images(report, run.root)))
    layers = {row.name: row.layers for row in report.variants if row.layers}
    if layers:
        write_text(run.root / LAYERS, layers_csv(layers))
    if report.best:
        write_text(run.root / CARD, render_card(report))
    else:
        (run.root / CARD).unlink(missing_ok=True)


def report_images(report: Report, folder: Path) -> dict[str, bytes]:
    """Return the image files that a report names, if they are inside its folder."""
    evidence = report.evidence
    names = {row.picture for row in evidence.feature_maps}
    names |= {row.picture for row in evidence.thumbnails}
    inside = (name for name in names if (folder / name).resolve().is_relative_to(folder.resolve()))
    return {name: (folder / name).read_bytes() for name in inside if (folder / name).is_file()}


def with_measurement(row: VariantResult, field: str, value: Any) -> VariantResult:
    """Return the row with a measurement, and without the reason why it was missing."""
    reasons = {name: reason for name, reason in row.unmeasured.items() if name != field}
    return replace(row, unmeasured=reasons, **{field: value})


def without_measurement(row: VariantResult, field: str, empty: Any, reason: str) -> VariantResult:
    """Return the row without a measurement, and with the reason why."""
    return replace(row, unmeasured={**row.unmeasured, field: reason}, **{field: empty})


def _with_all_engines(report: Report, target: Target) -> Report:
    """Return the report with a row for every engine of the run, and for no other."""
    previous = {row.name: row for row in report.variants if row.engine is not None}
    rows = []
    for name, engine in target.engines.items():
        info = engine_info(engine, f"{ENGINES}/{engine.folder.name}", cached=True)
        row = previous.get(name)
        # An interrupted build may have put another engine there.
        if row is None or row.engine is None or row.engine.sha256 != info.sha256:
            row = VariantResult(name, engine.backend, engine.precision, info)
        rows.append(row)
    return replace(report, variants=tuple(rows))
