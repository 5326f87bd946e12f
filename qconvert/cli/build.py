"""`qconvert build`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import (
    bench_options,
    engine_options,
    eval_options,
    gate_options,
    image_options,
    quantize_options,
)
from qconvert.cli.progress import ProgressDisplay
from qconvert.core.sanitize import sanitize_text

if TYPE_CHECKING:
    from qconvert.core.config import Config
    from qconvert.run.build import BuildRequest

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
@quantize_options
@eval_options
@bench_options
@gate_options
@options.source_options
@click.option("--plan-only", is_flag=True, help="Make the graphs and no engine.")
@click.option("--fresh", is_flag=True, help="Do everything anew, whatever is stored.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and touch nothing.")
@options.settings_options
@options.json_option
@options.verbosity_options
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Make engines of MODEL for every backend and precision, time and score them.

    One folder holds all of it: the engines, the graphs they were made from, and one report with
    sizes, latencies and accuracies. The same command again goes on where it was, and repeats
    nothing that is done. Exit code 1 says that a gate failed.
    """
    from qconvert.run.build import BuildRequest

    if chosen["resumed"] is not None:
        if output is not None:
            raise click.UsageError("`--from RUN` goes on in RUN itself; leave `-o` out")
        config = settings.load_for_run(chosen["resumed"], model, chosen)
    else:
        config = settings.load(model, chosen)
    order = BuildRequest(
        out=chosen["resumed"] or settings.default_run_folder(output, str(config.model)),
        command=sanitize_text(shlex.join(["qconvert", *sys.argv[1:]])),
        resumed=chosen["resumed"] is not None,
        plan_only=chosen["plan_only"],
        trust=chosen["trust"],
        workers=chosen["workers"],
    )
    if chosen["dry_run"]:
        _print_dry_run(config, order)
        return
    build_and_report(config, order, fresh=chosen["fresh"], as_json=chosen["as_json"])


def build_and_report(
    config: "Config", order: "BuildRequest", *, as_json: bool, fresh: bool = False
) -> None:
    """Build, show the report, and end with code 1 where a gate failed."""
    from qconvert.cli import views
    from qconvert.core import cache
    from qconvert.report import gates
    from qconvert.run.build import build

    with ProgressDisplay() as steps:
        report = build(config, order, cache.open_default(fresh=fresh), steps.update)
    if as_json:
        from qconvert.report.json_file import to_json

        console.write_json(to_json(report))
    else:
        views.show_report(report)
    console.info(f"report: {order.out / 'report.html'}")
    gates.require_passed(report, shown=not as_json)


def _print_dry_run(config: "Config", order: "BuildRequest") -> None:
    from qconvert.run import variants
    from qconvert.run.run_folder import (
        RunFolder,
        require_inputs_exist,
        require_same_settings,
        require_usable_folder,
    )

    if order.resumed:
        require_same_settings(RunFolder(order.out), config)
    else:
        require_inputs_exist(config)
        require_usable_folder(order.out, config)
    chosen = variants.choose_variants(config.build, plan_only=True)
    console.write(f"model     {config.model}")
    console.write(f"calibrate {config.calibration.images or 'no images'}")
    for variant in chosen.variants:
        said = chosen.available[variant.backend]
        where = "runs here" if said.runs else said.reason
        console.write(f"engine    {variant.name}: {where}")
    console.write(f"evaluate  {config.evaluate.images or 'no images'}")
    console.write(f"write     {order.out}")
    for note in chosen.notes:
        console.note(note)
