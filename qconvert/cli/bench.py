"""`qconvert bench`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import bench_options, gate_options
from qconvert.cli.progress import ProgressDisplay

EXAMPLES = """\b
Examples:
  qconvert bench runs/model
  qconvert bench fp32.onnx int8.onnx --batch-sizes 1,8,32"""


@click.command(epilog=EXAMPLES)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=click.Path(path_type=Path))
@bench_options
@gate_options
@options.settings_options
@options.json_option
@options.verbosity_options
def command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Time engines in turns, so that what drifts on this machine hits all of them alike.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU. For a whole RUN the
    figures go into its report: so are those filled in that the machine of the build could not
    measure.
    """
    from qconvert.cli import views
    from qconvert.report import gates
    from qconvert.run import targets as found
    from qconvert.run.bench_job import bench

    target = found.resolve(targets)
    config = settings.load_for_target(target.run.root if target.run else None, chosen)
    with ProgressDisplay() as steps:
        report = bench(target, config, steps.update)
    if chosen["as_json"]:
        from qconvert.report.json_file import to_json

        console.write_json(to_json(report))
    else:
        views.show_latencies(report)
    gates.require_passed(report, shown=not chosen["as_json"])
