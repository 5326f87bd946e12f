"""`qconvert report`."""

from collections.abc import Callable
from pathlib import Path

import click

from qconvert.cli import console, options, views


@options.command(
    "qconvert report runs/model", "qconvert report runs/model --format html -o report.html"
)
@click.argument("run", type=options.PATH)
@options.choice("--format", ("text", "html", "md", "json", "card"), "Output format.", "form")
@click.option(
    "--engine",
    default="",
    metavar="NAME",
    help="Engine of the model card (default: the verdict's).",
)
@options.output("Write to a file (not for text).", options.FILE)
def command(run: Path, form: str, engine: str, output: Path | None) -> None:
    """Show the report of a finished RUN from its report.json; nothing is measured.

    RUN is the run folder or the JSON file; an HTML page includes the images in the same folder.
    """
    from qconvert.core.atomic import write_text
    from qconvert.report import html, json_file, markdown
    from qconvert.run.report_files import report_images
    from qconvert.run.run_folder import require_output_file

    if form == "text" and output is not None:
        raise click.UsageError("`-o` needs a format for files: `--format html`")
    if engine and form != "card":
        raise click.UsageError("`--engine` is for a card: `--format card`")
    file = run / "report.json" if run.is_dir() else run
    report = json_file.load(file)
    if form == "text":
        views.show_report(report)
        return
    if form == "json" and output is None:
        console.write_json(json_file.to_json(report))
        return
    writers: dict[str, Callable[[], str]] = {
        "html": lambda: html.render_html(report, report_images(report, file.parent)),
        "md": lambda: markdown.render_markdown(report),
        "json": lambda: json_file.dumps(report),
        "card": lambda: markdown.render_card(report, engine),
    }
    text = writers[form]()
    if output is None:
        console.write(text)
    else:
        require_output_file(output)
        write_text(output, text)
