"""`qconvert evaluate`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import eval_options, gate_options, preprocess_options
from qconvert.cli.progress import ProgressDisplay

EXAMPLES = """\b
Examples:
  qconvert evaluate runs/model --eval val/ --labels labels.csv
  qconvert evaluate fp32.onnx int8.onnx --eval val/"""


@click.command(epilog=EXAMPLES)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=click.Path(path_type=Path))
@eval_options
@preprocess_options
@gate_options
@options.settings_options
@options.json_option
@options.verbosity_options
def command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Compare the answers of engines over the same images with FP32 and, where known, with labels.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU; of several files the
    first is what the others are held against. For a whole RUN the figures go into its report.
    """
    from qconvert.cli import views
    from qconvert.core import cache
    from qconvert.images.image_files import ReadOptions
    from qconvert.report import gates
    from qconvert.run import targets as found
    from qconvert.run.evaluate_job import evaluate

    target = found.resolve(targets)
    config = settings.load_for_target(target.run.root if target.run else None, chosen)
    with ProgressDisplay() as steps:
        reading = ReadOptions(chosen["workers"])
        report = evaluate(target, config, reading, (cache.open_default(), steps.update))
    if chosen["as_json"]:
        from qconvert.report.json_file import to_json

        console.write_json(to_json(report))
    else:
        views.show_accuracies(report)
    gates.require_passed(report, shown=not chosen["as_json"])
