"""`qconvert quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import image_options, quantize_options
from qconvert.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from qconvert.core.config import Config
    from qconvert.run.quantize import Quantized
    from qconvert.run.validate import QuantizeRequest

EXAMPLES = """\b
Examples:
  qconvert quantize model.onnx --images calib_data/ -o int8.onnx
  qconvert quantize model.onnx --images photos/ --backend tensorrt --rest fp16"""

# Named here too, so that `--help` needs not import them; a test compares.
BACKENDS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("int8", "fp16", "bf16")
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog=EXAMPLES)
@click.argument("model", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The ONNX file (default: NAME-BACKEND-PRECISION.onnx).",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="cpu",
    show_default=True,
    help="Whose scheme to follow; it need not work here.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="int8",
    show_default=True,
    help="What to rewrite the model to.",
)
@click.option(
    "--keep-io/--half-io", default=True, help="Inputs and outputs in float32 (default), or half."
)
@click.option("--calibration", type=_FILE, help="What `qconvert calibrate` measured before.")
@quantize_options
@click.option("--plan", type=_FILE, help="Replay a plan instead of making one.")
@click.option("--plan-out", type=_FILE, help="Write the plan, to read and edit.")
@options.source_options
@image_options
@click.option("--dry-run", is_flag=True, help="Print what would be quantized and touch nothing.")
@options.settings_options
@options.json_option
@options.verbosity_options
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Rewrite MODEL so that the file itself says what is computed in which precision.

    INT8 is written as QuantizeLinear and DequantizeLinear nodes where the backend has a use for
    them, with weights stored as integers; FP16 and BF16 as types. Ranges come from --images or
    from a calibration file. The table tells what was quantized, and why the rest was not.
    """
    from qconvert.run.validate import QuantizeRequest

    config = settings.load(model, chosen)
    suffix = f"-{chosen['backend']}-{chosen['precision']}.onnx"
    request = QuantizeRequest(
        out=settings.output_path(output, str(config.model), suffix),
        backend=chosen["backend"],
        precision=chosen["precision"],
        calibration=chosen["calibration"],
        plan=chosen["plan"],
        keep_io=chosen["keep_io"],
        trust=chosen["trust"],
    )
    if chosen["dry_run"]:
        _print_dry_run(config, request, as_json=chosen["as_json"])
        return
    if chosen["plan_out"] is not None:
        _require_plan_place(chosen["plan_out"], Path(str(config.model)), request)
    done = _quantize(config, request)
    if chosen["plan_out"] is not None:
        _write_plan(done, chosen["plan_out"])
    for text in done.notes:
        console.note(text)
    _show(done, request, as_json=chosen["as_json"])


def _quantize(config: "Config", request: "QuantizeRequest") -> "Quantized":
    from qconvert.core import cache
    from qconvert.run.quantize import quantize

    with ProgressDisplay() as steps:
        return quantize(config, request, cache.open_default(), steps.update)


def _require_plan_place(place: Path, model: Path, request: "QuantizeRequest") -> None:
    from qconvert.core.errors import UsageError
    from qconvert.run.run_folder import require_output_file

    if request.precision != "int8":
        raise UsageError("there is no plan to write", hint="a plan is for `--precision int8`")
    require_output_file(place, model, request.out)


def _print_dry_run(config: "Config", request: "QuantizeRequest", *, as_json: bool) -> None:
    from dataclasses import asdict

    from qconvert.cli import views
    from qconvert.core import cache
    from qconvert.core.errors import UsageError
    from qconvert.run.quantize import preview_layers

    if request.plan is not None:
        raise UsageError("a plan says itself what it does", hint="leave `--dry-run` or it out")
    found = preview_layers(config, request, cache.open_default())
    if as_json:
        console.write_json({"layers": {name: asdict(each) for name, each in found.items()}})
    else:
        console.write_table(views.coverage_table(found))


def _write_plan(done: "Quantized", place: Path) -> None:
    from qconvert.quantize import plan_files

    assert done.quantized.plan is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    planned = plan_files.PlanWithWeights(done.quantized.plan, done.quantized.rounded_weights)
    plan_files.save_plan(planned, place)
    console.info(f"    plan: {place}")


def _show(done: "Quantized", request: "QuantizeRequest", *, as_json: bool) -> None:
    from qconvert.cli import views

    for name, why in list(done.quantized.islands.items())[:3]:
        console.note(f"`{name}` stays in float32: {why}")
    if len(done.quantized.islands) > 3:
        console.note(f"and {len(done.quantized.islands) - 3} more nodes: see `--json`")
    if as_json:
        console.write_json(_as_json(done, request))
    elif done.quantized.plan is not None:
        console.write_table(views.coverage_table(done.quantized.plan.layers))


def _as_json(done: "Quantized", request: "QuantizeRequest") -> dict[str, object]:
    from dataclasses import asdict

    from qconvert.core import onnx_io
    from qconvert.core.cache import file_sha256
    from qconvert.quantize.plan_files import plan_to_json

    return {
        "model": str(request.out),
        "files": [str(file) for file in onnx_io.model_files(request.out)],
        "bytes": sum(file.stat().st_size for file in onnx_io.model_files(request.out)),
        "sha256": file_sha256(request.out),
        "backend": request.backend,
        "precision": request.precision,
        "plan": plan_to_json(done.quantized.plan) if done.quantized.plan is not None else None,
        "islands": done.quantized.islands,
        "tried": [asdict(each) for each in done.quantized.method_scores],
        "notes": list(done.notes),
    }
