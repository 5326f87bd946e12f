"""`qconvert quantize`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings, views

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
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Convert MODEL to an ONNX file that specifies the precision of every node.

    INT8 is written as QuantizeLinear and DequantizeLinear nodes where the backend uses them, with
    weights as integers; FP16 and BF16 are written as tensor types. Ranges come from --images or
    from a calibration file. The table shows what was quantized, and why the rest was not.
    """
    from qconvert.core.errors import UsageError
    from qconvert.quantize.plan_files import PlanWithWeights, save_plan
    from qconvert.run.context import open_context
    from qconvert.run.quantize import QuantizeRequest, preview_layers, quantize
    from qconvert.run.run_folder import require_output_file

    config = settings.load(model, chosen)
    suffix = f"-{chosen['backend']}-{chosen['precision']}.onnx"
    out = settings.output_path(output, str(config.model), suffix)
    names = ("backend", "precision", "calibration", "plan", "keep_io")
    request = QuantizeRequest(out, **{name: chosen[name] for name in names})
    if chosen["dry_run"]:
        if request.plan is not None:
            raise UsageError(
                "`--dry-run` shows a new plan, and `--plan` applies an existing one",
                hint="leave out one of them",
            )
        layers = preview_layers(open_context(config, trust=chosen["trust"]), request)
        if chosen["as_json"]:
            console.write_json({"layers": {name: asdict(layer) for name, layer in layers.items()}})
        else:
            views.show_coverage(layers)
        return
    plan_out: Path | None = chosen["plan_out"]
    if plan_out is not None:
        if request.precision != "int8":
            raise UsageError("there is no plan to write", hint="a plan is for `--precision int8`")
        require_output_file(plan_out, Path(str(config.model)), request.out)
    result = quantize(open_context(config, console.PROGRESS.update, trust=chosen["trust"]), request)
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
