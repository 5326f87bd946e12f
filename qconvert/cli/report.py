"""`qconvert report`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.cli import console, options

if TYPE_CHECKING:
    from qconvert.report.model import Report

EXAMPLES = """\b
Examples:
  qconvert report runs/model
  qconvert report runs/model --format html -o report.html"""

FORMATS = ("text", "html", "md", "json", "card")


@click.command(epilog=EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="How to show it.",
)
@click.option(
    "--engine",
    default="",
    metavar="NAME",
    help="Which one a card is about (default: the verdict's).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it to a file (text goes to the terminal alone).",
)
@options.talk
def command(run: Path, form: str, engine: str, output: Path | None) -> None:
    """Show a finished RUN again from its report.json; nothing is measured.

    RUN is its folder, or the JSON file; an HTML page takes the pictures that lie beside it.
    """
    from qconvert.cli import report_view
    from qconvert.pipeline.place import require_place
    from qconvert.pipeline.run_folder import put_text
    from qconvert.report import as_json

    if form == "text" and output is not None:
        raise click.UsageError("`-o` needs a form that is a file: `--format html`")
    if engine and form != "card":
        raise click.UsageError("`--engine` is for a card: `--format card`")
    file = run / "report.json" if run.is_dir() else run
    report = as_json.load(file)
    if form == "text":
        report_view.show(report)
        return
    if form == "json" and output is None:
        console.data_json(as_json.to_json(report))
        return
    text = _written(report, form, engine, file.parent)
    if output is None:
        console.data(text)
        return
    require_place(output)
    put_text(output, text)


def _written(report: "Report", form: str, engine: str, folder: Path) -> str:
    from qconvert.pipeline.targets import pictures
    from qconvert.report import as_json
    from qconvert.report.card import card
    from qconvert.report.html import html
    from qconvert.report.markdown import markdown

    forms: dict[str, Callable[[Report], str]] = {
        "html": lambda report: html(report, pictures(report, folder)),
        "md": markdown,
        "json": as_json.dumps,
        "card": lambda report: card(report, engine),
    }
    return forms[form](report)
