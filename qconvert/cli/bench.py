"""`qconvert bench`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.build_options import bench_options, gate_options
from qconvert.cli.steps import Steps

EXAMPLES = """\b
Examples:
  qconvert bench runs/model
  qconvert bench fp32.onnx int8.onnx --batch-sizes 1,8,32"""


@click.command(epilog=EXAMPLES)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=click.Path(path_type=Path))
@bench_options
@gate_options
@options.settings
@options.as_json
@options.talk
def command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Time engines in turns, so that what drifts on this machine hits all of them alike.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU. For a whole RUN the
    figures go into its report: so are those filled in that the machine of the build could not
    measure.
    """
    from qconvert.cli import report_view
    from qconvert.pipeline import targets as found
    from qconvert.pipeline.measuring_again import bench
    from qconvert.report import gates

    target = found.resolve(targets)
    config = settings.of_target(target.run.root if target.run else None, chosen)
    with Steps() as steps:
        report = bench(target, config, steps.tell)
    if chosen["as_json"]:
        from qconvert.report.as_json import to_json

        console.data_json(to_json(report))
    else:
        report_view.show_latencies(report)
    gates.require(report, shown=not chosen["as_json"])
