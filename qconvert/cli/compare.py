"""`qconvert compare`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.image_options import preprocess_options
from qconvert.cli.steps import Steps

EXAMPLES = """\b
Examples:
  qconvert compare model.onnx int8.onnx --images val/ -o layers.csv
  qconvert compare runs/m/model.onnx runs/m/engines/cpu-int8 --layers 'Conv'"""

COUNT = 32


@click.command(epilog=EXAMPLES)
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--layers",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Only these, by tensor, node or operator; repeatable.",
)
@click.option(
    "--images",
    "eval_images",
    type=click.Path(path_type=Path),
    help="Images to run on (default: those of the run that A or B is part of).",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=COUNT,
    show_default=True,
    metavar="N",
    help="At most so many of them.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures of all layers as CSV.",
)
@preprocess_options
@options.settings
@options.as_json
@options.talk
def command(
    first: Path, second: Path, patterns: tuple[str, ...], count: int, **chosen: Any
) -> None:
    """Compare B with A layer by layer: the error that arrives at each and the one it makes alone.

    A and B are ONNX files or RUN/engines/NAME, one of them made from the other. Errors are told as
    SQNR in decibels: 20 dB is an error of a tenth, 40 dB of a hundredth. What arrives at a layer
    comes from all before it and from itself; what it makes is its own, with exact inputs.
    """
    from qconvert import store
    from qconvert.cli import report_view
    from qconvert.pipeline import comparing
    from qconvert.pipeline.place import require_place
    from qconvert.pipeline.run_folder import put_text
    from qconvert.report.layers_csv import layers_csv

    pair = comparing.find(first, second)
    if chosen["output"] is not None:
        require_place(chosen["output"], first, second)
    config = settings.of_target(pair.run, chosen)
    with Steps() as steps:
        every = comparing.compared(pair, config, count, (store.default(), steps.tell))
    layers = comparing.chosen(every, patterns)
    if chosen["output"] is not None:
        put_text(chosen["output"], layers_csv({second.name: every}))
    if chosen["as_json"]:
        console.data_json(comparing.to_json(layers))
    else:
        report_view.show_layers(layers)
