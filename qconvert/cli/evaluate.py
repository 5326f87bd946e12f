"""`qconvert evaluate`."""

from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings, views


@options.command(
    "qconvert evaluate runs/model --eval val/ --labels labels.csv",
    "qconvert evaluate fp32.onnx int8.onnx --eval val/",
)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=options.PATH)
@options.eval_options
@options.preprocess_options
@options.gate_options
@options.common_options
def command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Compare the outputs of engines on the same images with FP32 and, if known, with labels.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU; of several files the
    first is the reference. For a whole RUN the accuracies go into its report.
    """
    from qconvert.run.context import open_context
    from qconvert.run.evaluate import evaluate
    from qconvert.run.targets import resolve

    target = resolve(targets)
    config = settings.load(None, chosen, target.run.root if target.run else None, engines=True)
    report = evaluate(target, open_context(config, console.PROGRESS.update), chosen["workers"])
    views.finish(report, as_json=chosen["as_json"], tables=("accuracy",))
