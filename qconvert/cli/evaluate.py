"""`qconvert evaluate`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.build_options import eval_options, gate_options
from qconvert.cli.image_options import preprocess_options
from qconvert.cli.steps import Steps

EXAMPLES = """\b
Examples:
  qconvert evaluate runs/model --eval val/ --labels labels.csv
  qconvert evaluate fp32.onnx int8.onnx --eval val/"""


@click.command(epilog=EXAMPLES)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=click.Path(path_type=Path))
@eval_options
@preprocess_options
@gate_options
@options.settings
@options.as_json
@options.talk
def command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Compare the answers of engines over the same images with FP32 and, where known, with labels.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU; of several files the
    first is what the others are held against. For a whole RUN the figures go into its report.
    """
    from qconvert import store
    from qconvert.cli import report_view
    from qconvert.images.reading import Reading
    from qconvert.pipeline import targets as found
    from qconvert.pipeline.measuring_again import evaluate
    from qconvert.report import gates

    target = found.resolve(targets)
    config = settings.of_target(target.run.root if target.run else None, chosen)
    with Steps() as steps:
        reading = Reading(chosen["workers"])
        report = evaluate(target, config, reading, (store.default(), steps.tell))
    if chosen["as_json"]:
        from qconvert.report.as_json import to_json

        console.data_json(to_json(report))
    else:
        report_view.show_accuracies(report)
    gates.require(report, shown=not chosen["as_json"])
