"""`qconvert compare`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings, views


@options.command(
    "qconvert compare model.onnx int8.onnx --images val/ -o layers.csv",
    "qconvert compare runs/m/model.onnx runs/m/engines/cpu-int8 --layers 'Conv'",
)
@click.argument("first", metavar="A", type=options.PATH)
@click.argument("second", metavar="B", type=options.PATH)
@options.repeated(
    "--layers", "patterns", "GLOB", "Only these layers, by tensor, node or operator; repeatable."
)
@click.option(
    "--images",
    cls=options.SettingOption,
    paths=["evaluate.images"],
    help="Images to run on (default: those of the run that A or B belongs to).",
)
@options.count("--count", "Use at most this many images.", default=32, show_default=True)
@options.output("Write the errors of all layers as CSV.", options.FILE)
@options.preprocess_options
@options.common_options
def command(first: Path, second: Path, output: Path | None, **chosen: Any) -> None:
    """Compare B with A layer by layer: the error that arrives at each layer and the error it adds.

    A and B are ONNX files or RUN/engines/NAME, one of them made from the other. Errors are SQNR in
    decibels: 20 dB is an error of 10 %, 40 dB of 1 %. The arriving error comes from the layer and
    all layers before it; the error that a layer makes is measured with exact inputs.
    """
    from qconvert.core.atomic import write_text
    from qconvert.report.tables import layers_csv
    from qconvert.run import compare
    from qconvert.run.context import open_context
    from qconvert.run.run_folder import require_output_file

    reference, graph, run = compare.find_graphs(first, second)
    if output is not None:
        require_output_file(output, first, second)
    config = settings.load(None, chosen, run, engines=True)
    context = open_context(config, console.PROGRESS.update)
    all_layers = compare.compare_graphs(reference, graph, chosen["count"], context)
    layers = compare.select_layers(all_layers, chosen["patterns"])
    if output is not None:
        write_text(output, layers_csv({second.name: all_layers}))
    if chosen["as_json"]:
        console.write_json(compare.layers_to_json(layers))
    else:
        views.show_layer_errors(layers)
