"""`qconvert report`."""

from pathlib import Path

import click

from qconvert.cli import console, options

EXAMPLES = """\b
Examples:
  qconvert report runs/model
  qconvert report runs/model --format md"""

FORMATS = ("text", "md", "json", "card")


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
@options.talk
def command(run: Path, form: str) -> None:
    """Show a finished RUN again from its report.json; nothing is measured."""
    from qconvert.cli import report_view
    from qconvert.report import as_json
    from qconvert.report.card import card
    from qconvert.report.markdown import markdown

    report = as_json.load(run / "report.json" if run.is_dir() else run)
    if form == "text":
        report_view.show(report)
    else:
        forms = {"md": markdown, "json": as_json.dumps, "card": card}
        console.data(forms[form](report))
