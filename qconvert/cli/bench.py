"""`qconvert bench`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings, views


@options.command(
    "qconvert bench runs/model", "qconvert bench fp32.onnx int8.onnx --batch-sizes 1,8,32"
)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=options.PATH)
@options.bench_options
@options.gate_options
@options.common_options
def command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Time engines in interleaved rounds, so that machine drift affects all of them equally.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU. For a whole RUN, the
    latencies are added to its report, including those that the build machine could not measure.
    """
    from qconvert.run.bench import bench
    from qconvert.run.context import open_context
    from qconvert.run.targets import resolve

    target = resolve(targets)
    config = settings.load(None, chosen, target.run.root if target.run else None, engines=True)
    report = bench(target, open_context(config, console.PROGRESS.update))
    views.finish(report, as_json=chosen["as_json"], tables=("latency", "gpu", "timing"))
