"""The commands that lead to a quantized model: `calibrate`, `quantize` and `search`."""

import math
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options
from qconvert.core.errors import GateFailed, UsageError
from qconvert.core.formats import FORMATS
from qconvert.report.table import TextTable, make_columns

if TYPE_CHECKING:
    from qconvert.calibrate.calibration import Calibration
    from qconvert.run.quantize import Quantized
    from qconvert.run.quantize_request import QuantizeRequest

MAX_DRIFT = 0.05


def _parse_shard(text: str) -> tuple[int, int]:
    number, count = map(options.parse_int, text.partition("/")[::2])
    if number is None or count is None or not 1 <= number <= count:
        raise click.BadParameter(f"`{text}` is not I/N, such as 2/8 for the second of eight parts")
    return number, count


@options.command(
    "qconvert calibrate model.onnx --images calib_data/ -o calibration.npz",
    "qconvert calibrate --show calibration.npz --method percentile:99.99",
)
@click.argument("targets", nargs=-1, metavar="MODEL | FILE...")
@options.output("The calibration file (default: calibration.npz).")
@options.source_options
@options.image_options
@options.setting_options("calibration", "exact")
@options.count(
    "--workers",
    "Worker processes that share the images (default: 1, which uses every core).",
    default=1,
)
@click.option(
    "--shard",
    type=_parse_shard,
    metavar="I/N",
    help="Measure only part I of N; merge the parts later.",
)
@options.flag("--merge", "Merge the parts FILE... into one.")
@options.flag("--show", "Print the ranges of FILE, or of the new calibration.")
@options.repeated(
    "--method",
    "methods",
    "NAME",
    "Method to show: mse, minmax, moving-average, entropy, percentile:P; repeatable.",
)
@options.flag("--symmetric", "Show ranges for a symmetric grid (TensorRT).")
@options.flag("--fresh", "Start over instead of resuming.")
@options.common_options
def calibrate_command(
    targets: tuple[str, ...], output: Path | None, fresh: bool, **chosen: Any
) -> None:
    """Measure the values of every tensor of MODEL on images, once for all range methods.

    One pass records exact extremes and value counts of each tensor in one small file. Every range
    method works from that file, so trying another method runs no image again. An interrupted run
    is resumed. --merge combines parts measured elsewhere with --shard into the same bytes as one
    run.
    """
    from qconvert.calibrate.calibration import load_calibration
    from qconvert.run.calibrate import calibrate

    if chosen["merge"]:
        _merge(targets, output)
        return
    if chosen["show"] and len(targets) == 1 and targets[0].endswith(".npz"):
        _show_ranges(load_calibration(Path(targets[0])), chosen)
        return
    if len(targets) > 1:
        raise UsageError("one model at a time", hint="to add parts: `--merge A.npz B.npz -o C.npz`")
    context = options.open_job(targets[0] if targets else None, chosen)
    extent = {"workers": chosen["workers"], "shard": chosen["shard"], "fresh": fresh}
    calibration = calibrate(context, output or Path("calibration.npz"), **extent)
    _note_weaknesses(calibration, chosen["shard"])
    if chosen["show"] or chosen["as_json"]:
        _show_ranges(calibration, chosen)


def _merge(parts: tuple[str, ...], output: Path | None) -> None:
    from qconvert.calibrate.calibration import (
        load_calibration,
        merge_calibrations,
        save_calibration,
    )
    from qconvert.run.run_folder import require_output_file

    if len(parts) < 2 or output is None:
        raise UsageError(
            "`--merge` needs two or more parts and `-o`",
            hint="`qconvert calibrate --merge A.npz B.npz -o ALL.npz`",
        )
    require_output_file(output)
    merged = reduce(merge_calibrations, map(load_calibration, map(Path, parts)))
    save_calibration(merged, output)
    missing = sum(map(len, merged.missing_images()))
    gap = f", {missing} of the listed images are missing" if missing else ""
    count = merged.image_indices.size
    console.info(f"wrote {output}: {count} images from {len(parts)} parts{gap}")


def _note_weaknesses(calibration: "Calibration", shard: tuple[int, int] | None) -> None:
    from qconvert.calibrate.summary import range_drift
    from qconvert.run.calibrate import shard_range

    images = calibration.origin.images
    missing = calibration.missing_images(shard_range(len(images), shard))
    names = [f"`{images[index].name}`" for indices in missing for index in indices]
    if names:
        listed = ", ".join(names[:3] + ["…"] * (len(names) > 3))
        console.note(f"{len(names)} of {len(images)} images could not be read: {listed}")
    count, summaries = calibration.image_indices.size, calibration.summaries.values()
    drifting = sum(bool(tensor.size) and range_drift(tensor) > MAX_DRIFT for tensor in summaries)
    if count < 32:
        console.note(f"only {count} images were used; 100 to 500 are usual")
    elif drifting:
        console.note(
            f"{drifting} of {len(summaries)} ranges still moved by more than {MAX_DRIFT:.0%} "
            "over the last quarter of the images; use more images"
        )


def _show_ranges(calibration: "Calibration", chosen: dict[str, Any]) -> None:
    """Print extremes, the range and clipping of each method, and the values of each tensor."""
    from qconvert.calibrate.methods import find_method
    from qconvert.calibrate.summary import clipped_share, equal_width_counts, range_drift
    from qconvert.core.scales import Grid

    methods, grid = chosen["methods"] or ("mse",), Grid(symmetric=chosen["symmetric"])
    range_methods = {name: find_method(name) for name in methods}
    titles = [title for name in methods for title in (name, "clipped")]
    layout = f"l r2 r2 {'r r1 ' * len(methods)} l3"
    columns = make_columns(layout, "tensor", "min", "max", *titles, "values, log scale")
    tensors: list[dict[str, object]] = []
    rows = []
    for tensor, summary in calibration.summaries.items():
        if not summary.size:
            continue
        row, kept = [tensor, f"{summary.low:.4g}", f"{summary.high:.4g}"], []
        for name, method in range_methods.items():
            bounds = method(summary, grid)
            share = clipped_share(summary, bounds)
            kept.append({"method": name, **asdict(bounds), "clipped": share})
            row += [f"{bounds.low:.4g} … {bounds.high:.4g}", f"{100 * share:.3f} %"]
        counts = equal_width_counts(summary, 16).tolist()
        # Blocks on a log scale, the largest count as a full block.
        top = math.log1p(max(counts, default=0.0)) or 1.0
        heights = (round(8 * math.log1p(max(0.0, count)) / top) for count in counts)
        rows.append([*row, "".join(" ▁▂▃▄▅▆▇█"[height] for height in heights)])
        extremes = {"low": summary.low, "high": summary.high}
        measured = {"drift": range_drift(summary), "histogram": counts}
        tensors.append({"tensor": tensor, **extremes, "kept": kept, **measured})
    if not chosen["as_json"]:
        console.write_table(TextTable(columns, rows))
        return
    origin = calibration.origin
    console.write_json(
        {
            "fingerprint": origin.fingerprint,
            "images": int(calibration.image_indices.size),
            "preprocessing": origin.preprocessing,
            "runtime": origin.runtime,
            "exact": origin.exact,
            "tensors": tensors,
        }
    )


@options.command(
    "qconvert quantize model.onnx --images calib_data/ -o int8.onnx",
    "qconvert quantize model.onnx --images photos/ --backend tensorrt --rest fp16",
)
@click.argument("model", required=False)
@options.output("The ONNX file (default: NAME-BACKEND-PRECISION.onnx).")
@options.choice("--backend", options.BACKENDS, "Backend to quantize for; it need not work here.")
@options.choice("--precision", (*FORMATS, "fp16", "bf16"), "The precision to convert to.")
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
    from a calibration file; a model that was trained quantized has its own. The table shows what
    was quantized, and why the rest was not.
    """
    from qconvert.quantize.plan_files import PlanWithWeights, save_plan
    from qconvert.run.quantize import preview_layers, quantize
    from qconvert.run.quantize_request import QuantizeRequest
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
            console.show_coverage(layers, request.precision)
        return
    plan_out: Path | None = chosen["plan_out"]
    if plan_out is not None:
        if request.precision not in FORMATS:
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
                **console.model_file_json(request.out),
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
        console.show_coverage(model.plan.layers, request.precision)


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
    all images of --eval. On the CPU, blocks that run faster in float are kept in float before. Run
    the same command again to resume an interrupted search. Exit code 1 means that nothing stays
    within the budget and --max-latency.
    """
    from qconvert.report import search_tables
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
        result = search_tables.search_result_table(mix, summary.sizes)
        console.print_tables(*search_tables.trial_tables(mix), result)
        console.write(console.wrap_text(mix.why))
    console.info(f"all results: {folder}")
    if mix.outcome == "none":
        limits = "`--budget`" if mix.max_latency is None else "`--budget` or `--max-latency`"
        raise GateFailed(mix.why, hint=f"allow a larger {limits}, or use the float model")
