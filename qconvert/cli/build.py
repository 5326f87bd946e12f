"""`qconvert build`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.build_options import (
    bench_options,
    engine_options,
    eval_options,
    gate_options,
)
from qconvert.cli.choice_options import choice_options
from qconvert.cli.image_options import image_options
from qconvert.cli.steps import Steps
from qconvert.plain import plain

if TYPE_CHECKING:
    from qconvert.config import Config
    from qconvert.pipeline.build import Order

EXAMPLES = """\b
Examples:
  qconvert build model.onnx --images calib_data/ --eval val/ -o runs/model
  qconvert build --from runs/model --backend tensorrt --max-drop 1"""


@click.command(epilog=EXAMPLES)
@click.argument("model", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The run's folder (default: runs/NAME).",
)
@click.option(
    "--from",
    "resumed",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on in a run made elsewhere; needs no image again.",
)
@engine_options
@image_options
@choice_options
@eval_options
@bench_options
@gate_options
@options.source
@click.option("--plan-only", is_flag=True, help="Make the graphs and no engine.")
@click.option("--fresh", is_flag=True, help="Do everything anew, whatever is stored.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and touch nothing.")
@options.settings
@options.as_json
@options.talk
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Make engines of MODEL for every backend and precision, time and score them.

    One folder holds all of it: the engines, the graphs they were made from, and one report with
    sizes, latencies and accuracies. The same command again goes on where it was, and repeats
    nothing that is done. Exit code 1 says that a gate failed.
    """
    from qconvert.pipeline.build import Order

    if chosen["resumed"] is not None:
        if output is not None:
            raise click.UsageError("`--from RUN` goes on in RUN itself; leave `-o` out")
        config = settings.of_run(chosen["resumed"], model, chosen)
    else:
        config = settings.read(model, chosen)
    order = Order(
        out=chosen["resumed"] or settings.run_place(output, str(config.model)),
        command=plain(shlex.join(["qconvert", *sys.argv[1:]])),
        resumed=chosen["resumed"] is not None,
        plan_only=chosen["plan_only"],
        trust=chosen["trust"],
        workers=chosen["workers"],
    )
    if chosen["dry_run"]:
        _preview(config, order)
        return
    carry_out(config, order, fresh=chosen["fresh"], as_json=chosen["as_json"])


def carry_out(config: "Config", order: "Order", *, as_json: bool, fresh: bool = False) -> None:
    """Build, show the report, and end with code 1 where a gate failed."""
    from qconvert import store
    from qconvert.cli import report_view
    from qconvert.pipeline.build import build
    from qconvert.report import gates

    with Steps() as steps:
        report = build(config, order, store.default(fresh=fresh), steps.tell)
    if as_json:
        from qconvert.report.as_json import to_json

        console.data_json(to_json(report))
    else:
        report_view.show(report)
    console.say(f"report: {order.out / 'report.html'}")
    gates.require(report, shown=not as_json)


def _preview(config: "Config", order: "Order") -> None:
    from qconvert.pipeline import variants
    from qconvert.pipeline.place import require_run, require_there
    from qconvert.pipeline.run_folder import RunFolder, require_same

    if order.resumed:
        require_same(RunFolder(order.out), config)
    else:
        require_there(config)
        require_run(order.out, config)
    chosen = variants.choose(config.build, plan_only=True)
    console.data(f"model     {config.model}")
    console.data(f"calibrate {config.calibration.images or 'no images'}")
    for variant in chosen.variants:
        said = chosen.available[variant.backend]
        where = "runs here" if said.runs else said.reason
        console.data(f"engine    {variant.name}: {where}")
    console.data(f"evaluate  {config.evaluate.images or 'no images'}")
    console.data(f"write     {order.out}")
    for note in chosen.notes:
        console.note(note)
