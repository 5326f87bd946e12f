"""`qconvert quantize` and `qconvert search`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, views
from qconvert.core.errors import GateFailed, UsageError

if TYPE_CHECKING:
    from qconvert.run.quantize import Quantized, QuantizeRequest


@options.command(
    "qconvert quantize model.onnx --images calib_data/ -o int8.onnx",
    "qconvert quantize model.onnx --images photos/ --backend tensorrt --rest fp16",
)
@click.argument("model", required=False)
@options.output("The ONNX file (default: NAME-BACKEND-PRECISION.onnx).")
@options.choice("--backend", options.BACKENDS, "Backend to quantize for; it need not work here.")
@options.choice("--precision", ("int8", "fp16", "bf16"), "The precision to convert to.")
@click.option(
    "--keep-io/--half-io", default=True, help="Inputs and outputs in float32 (default), or half."
)
@click.option(
    "--calibration", type=options.FILE, help="Calibration file written by `qconvert calibrate`."
)
@options.quantize_options
@click.option("--plan", type=options.FILE, help="Apply an existing plan instead of making one.")
@click.option("--plan-out", type=options.FILE, help="Write the plan to a file, to read and edit.")
@options.source_options
@options.image_options
@options.flag("--dry-run", "Print what would be quantized without changing anything.")
@options.common_options
def quantize_command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Convert MODEL to an ONNX file that specifies the precision of every node.

    INT8 is written as QuantizeLinear and DequantizeLinear nodes where the backend uses them, with
    weights as integers; FP16 and BF16 are written as tensor types. Ranges come from --images or
    from a calibration file. The table shows what was quantized, and why the rest was not.
    """
    from qconvert.quantize.plan_files import PlanWithWeights, save_plan
    from qconvert.run.quantize import QuantizeRequest, preview_layers, quantize
    from qconvert.run.run_folder import require_output_file

    context = options.open_job(model, chosen)
    source = str(context.config.model)
    suffix = f"-{chosen['backend']}-{chosen['precision']}.onnx"
    out = options.output_path(output, source, suffix)
    names = ("backend", "precision", "calibration", "plan", "keep_io")
    request = QuantizeRequest(out, **{name: chosen[name] for name in names})
    if chosen["dry_run"]:
        if request.plan is not None:
            raise UsageError(
                "`--dry-run` shows a new plan, and `--plan` applies an existing one",
                hint="leave out one of them",
            )
        layers = preview_layers(context, request)
        if chosen["as_json"]:
            console.write_json({"layers": {name: asdict(layer) for name, layer in layers.items()}})
        else:
            views.show_coverage(layers)
        return
    plan_out: Path | None = chosen["plan_out"]
    if plan_out is not None:
        if request.precision != "int8":
            raise UsageError("there is no plan to write", hint="a plan is for `--precision int8`")
        require_output_file(plan_out, Path(source), request.out)
    result = quantize(context, request)
    if plan_out is not None:
        plan, weights = result.quantized.plan, result.quantized.rounded_weights
        assert plan is not None
        plan_out.parent.mkdir(parents=True, exist_ok=True)
        save_plan(PlanWithWeights(plan, weights), plan_out)
        console.info(f"    plan: {plan_out}")
    console.note(*result.notes)
    _show(result, request, as_json=chosen["as_json"])


def _show(result: "Quantized", request: "QuantizeRequest", *, as_json: bool) -> None:
    from qconvert.quantize.plan_files import plan_to_json

    model = result.quantized
    for name, reason in list(model.islands.items())[:3]:
        console.note(f"`{name}` stays in float32: {reason}")
    if len(model.islands) > 3:
        console.note(f"and {len(model.islands) - 3} more nodes: see `--json`")
    if as_json:
        console.write_json(
            {
                **views.model_file_json(request.out),
                "backend": request.backend,
                "precision": request.precision,
                "plan": plan_to_json(model.plan) if model.plan is not None else None,
                "islands": model.islands,
                "tried": [
                    {"method": method, "distance": error}
                    for method, error in model.method_errors.items()
                ],
                "notes": list(result.notes),
            }
        )
    elif model.plan is not None:
        views.show_coverage(model.plan.layers)


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
def search_command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Find the smallest part of MODEL to keep in float so that accuracy stays within a budget.

    On held-out calibration images, the search first keeps each block in float alone, then sets of
    the blocks that gain most for their cost. The mix that stays within the budget is confirmed on
    all images of --eval. Run the same command again to resume an interrupted search. Exit code 1
    means that no mix stays within the budget.
    """
    from qconvert.report import tables
    from qconvert.run.run_folder import require_usable_folder
    from qconvert.run.search import preview_search, run_search

    context = options.open_job(model, chosen)
    config = context.config
    folder = output or Path("runs") / f"{options.model_name(str(config.model))}-mixed"
    if chosen["dry_run"]:
        require_usable_folder(folder, config)
        console.write(*preview_search(context), f"write     {folder}")
        return
    summary = run_search(context, folder, chosen["workers"])
    mix = summary.mix
    console.note(*summary.notes, *mix.notes)
    if chosen["as_json"]:
        sizes = dict(summary.sizes)
        console.write_json({"backend": summary.backend, "bytes": sizes, **asdict(mix)})
    else:
        trials = [tables.block_table(mix), tables.trial_table(mix)] if mix.gains else []
        views.print_tables(*trials, tables.search_result_table(mix, summary.sizes))
        console.write(console.wrap_text(mix.why))
    console.info(f"all results: {folder}")
    if mix.outcome == "none":
        raise GateFailed(mix.why, hint="allow a larger `--budget`, or use the float model")
