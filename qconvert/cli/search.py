"""`qconvert search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import (
    bench_options,
    eval_options,
    image_options,
    quantize_options,
    setting_options,
)
from qconvert.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from qconvert.core.config import Config
    from qconvert.run.search_job import SearchSummary

EXAMPLES = """\b
Examples:
  qconvert search model.onnx --images calib_data/ --eval val/ --budget 0.5
  qconvert search m.onnx --images photos/ --backend tensorrt --max-latency 2"""


@click.command(epilog=EXAMPLES)
@click.argument("model", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder of results (default: runs/NAME-mixed).",
)
@setting_options("search.budget", "search.by", "search.max-latency", "build.backends")
@image_options
@quantize_options
@eval_options
@bench_options
@options.source_options
@click.option("--fresh", is_flag=True, help="Do everything anew, whatever is stored.")
@click.option("--dry-run", is_flag=True, help="Print what would be tried and touch nothing.")
@options.settings_options
@options.json_option
@options.verbosity_options
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Find the least of MODEL that must leave INT8 for its answers to keep a budget.

    Each block is lifted alone, then sets of those that bring most for their cost, on calibration
    images that are held out; what keeps the budget there is confirmed on all images of --eval. The
    same command again goes on where it was. Exit code 1 says that no mix keeps the budget.
    """
    from qconvert.core import cache
    from qconvert.core.errors import GateFailed
    from qconvert.run.search_job import SearchFolder, run_search

    config = settings.load(model, chosen)
    place = settings.default_run_folder(None, str(config.model))
    job = SearchFolder(
        output or place.with_name(f"{place.name}-mixed"), chosen["trust"], chosen["workers"]
    )
    if chosen["dry_run"]:
        _print_dry_run(config, job.out, trust=job.trust)
        return
    with ProgressDisplay() as steps:
        found = run_search(config, job, cache.open_default(fresh=chosen["fresh"]), steps.update)
    for text in (*found.notes, *found.mix.notes):
        console.note(text)
    if chosen["as_json"]:
        from dataclasses import asdict

        told = {"backend": found.backend, "bytes": dict(found.sizes), **asdict(found.mix)}
        console.write_json(told)
    else:
        _show(found)
    console.info(f"all of it: {job.out}")
    if found.mix.outcome == "none":
        raise GateFailed(found.mix.why, hint="a larger `--budget`, or the float model as it is")


def _show(found: "SearchSummary") -> None:
    from qconvert.cli import views

    views.show_search(found.mix, found.sizes)


def _print_dry_run(config: "Config", out: Path, *, trust: bool) -> None:
    from qconvert.core import cache
    from qconvert.run.run_folder import require_usable_folder
    from qconvert.run.search_job import preview_search

    require_usable_folder(out, config)
    for line in preview_search(config, cache.open_default(), trust=trust):
        console.write(line)
    console.write(f"write     {out}")
