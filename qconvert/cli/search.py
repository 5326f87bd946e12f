"""`qconvert search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.build_options import bench_options, eval_options, words
from qconvert.cli.choice_options import choice_options
from qconvert.cli.image_options import image_options
from qconvert.cli.steps import Steps

if TYPE_CHECKING:
    from qconvert.config import Config
    from qconvert.pipeline.mixing import Searched

EXAMPLES = """\b
Examples:
  qconvert search model.onnx --images calib_data/ --eval val/ --budget 0.5
  qconvert search m.onnx --images photos/ --backend tensorrt --max-latency 2"""

BYS = ("top-1", "agreement", "certainty")


@click.command(epilog=EXAMPLES)
@click.argument("model", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder of results (default: runs/NAME-mixed).",
)
@click.option("--budget", type=float, metavar="PP", help="Points to lose (default: 0.5).")
@click.option(
    "--by",
    type=click.Choice(BYS),
    help="Points of what (default: top-1 where the labels can tell, else certainty).",
)
@click.option(
    "--max-latency", "latency_limit", type=float, metavar="MS", help="Median milliseconds."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    callback=words,
    metavar="NAME",
    help="cpu, tensorrt or tensorrt-rtx (default: the best here).",
)
@image_options
@choice_options
@eval_options
@bench_options
@options.source
@click.option("--fresh", is_flag=True, help="Do everything anew, whatever is stored.")
@click.option("--dry-run", is_flag=True, help="Print what would be tried and touch nothing.")
@options.settings
@options.as_json
@options.talk
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Find the least of MODEL that must leave INT8 for its answers to keep a budget.

    Each block is lifted alone, then sets of those that bring most for their cost, on calibration
    images that are held out; what keeps the budget there is confirmed on all images of --eval. The
    same command again goes on where it was. Exit code 1 says that no mix keeps the budget.
    """
    from qconvert import store
    from qconvert.errors import GateFailed
    from qconvert.pipeline.mixing import Job, find_mix

    config = settings.read(model, chosen)
    place = settings.run_place(None, str(config.model))
    job = Job(output or place.with_name(f"{place.name}-mixed"), chosen["trust"], chosen["workers"])
    if chosen["dry_run"]:
        _preview(config, job.out, trust=job.trust)
        return
    with Steps() as steps:
        found = find_mix(config, job, store.default(fresh=chosen["fresh"]), steps.tell)
    for text in (*found.notes, *found.mix.notes):
        console.note(text)
    if chosen["as_json"]:
        from dataclasses import asdict

        told = {"backend": found.backend, "bytes": dict(found.sizes), **asdict(found.mix)}
        console.data_json(told)
    else:
        _show(found)
    console.say(f"all of it: {job.out}")
    if found.mix.outcome == "none":
        raise GateFailed(found.mix.why, hint="a larger `--budget`, or the float model as it is")


def _show(found: "Searched") -> None:
    from qconvert.cli import report_view

    report_view.show_mix(found.mix, found.sizes)


def _preview(config: "Config", out: Path, *, trust: bool) -> None:
    from qconvert import store
    from qconvert.pipeline.mixing import preview
    from qconvert.pipeline.place import require_run

    require_run(out, config)
    for line in preview(config, store.default(), trust=trust):
        console.data(line)
    console.data(f"write     {out}")
