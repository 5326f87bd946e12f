"""`qconvert search`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qconvert.cli import console, options, settings, views


@options.command(
    "qconvert search model.onnx --images calib_data/ --eval val/ --budget 0.5",
    "qconvert search m.onnx --images photos/ --backend tensorrt --max-latency 2",
)
@click.argument("model", required=False)
@options.output("Folder of results (default: runs/NAME-mixed).")
@options.setting_options("search", "budget", "by", "max-latency")
@click.option(
    cls=options.SettingOption,
    paths=["build.backends"],
    help="Where engines run, one of: cpu, tensorrt, tensorrt-rtx (default: the best backend that"
    " runs here).",
)
@options.image_options
@options.quantize_options
@options.eval_options
@options.bench_options
@options.source_options
@options.flag("--fresh", "Ignore cached results.")
@options.flag("--dry-run", "Print what would be tried without changing anything.")
@options.common_options
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Find the smallest part of MODEL to keep in float so that accuracy stays within a budget.

    On held-out calibration images, the search first keeps each block in float alone, then sets of
    the blocks that gain most for their cost. The mix that stays within the budget is confirmed on
    all images of --eval. Run the same command again to resume an interrupted search. Exit code 1
    means that no mix stays within the budget.
    """
    from qconvert.core.errors import GateFailed
    from qconvert.report import tables, terminal
    from qconvert.run.context import open_context
    from qconvert.run.run_folder import require_usable_folder
    from qconvert.run.search import preview_search, run_search

    config = settings.load(model, chosen)
    folder = output or Path("runs") / f"{settings.model_name(str(config.model))}-mixed"
    if chosen["dry_run"]:
        require_usable_folder(folder, config)
        lines = preview_search(open_context(config, trust=chosen["trust"]))
        console.write(*lines, f"write     {folder}")
        return
    context = open_context(
        config, console.PROGRESS.update, trust=chosen["trust"], fresh=chosen["fresh"]
    )
    summary = run_search(context, folder, chosen["workers"])
    mix = summary.mix
    console.note(*summary.notes, *mix.notes)
    if chosen["as_json"]:
        sizes = dict(summary.sizes)
        console.write_json({"backend": summary.backend, "bytes": sizes, **asdict(mix)})
    else:
        trials = [tables.block_table(mix), tables.trial_table(mix)] if mix.gains else []
        views.print_tables(*trials, tables.search_result_table(mix, summary.sizes))
        console.write(terminal.wrap_text(mix.why))
    console.info(f"all results: {folder}")
    if mix.outcome == "none":
        raise GateFailed(mix.why, hint="allow a larger `--budget`, or use the float model")
