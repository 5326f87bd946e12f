"""`qconvert quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.choice_options import choice_options
from qconvert.cli.image_options import image_options
from qconvert.cli.steps import Steps

if TYPE_CHECKING:
    from qconvert.config import Config
    from qconvert.pipeline.quantize import Quantized
    from qconvert.pipeline.requests import Request

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
@choice_options
@click.option("--plan", type=_FILE, help="Replay a plan instead of making one.")
@click.option("--plan-out", type=_FILE, help="Write the plan, to read and edit.")
@options.source
@image_options
@click.option("--dry-run", is_flag=True, help="Print what would be quantized and touch nothing.")
@options.settings
@options.as_json
@options.talk
def command(model: str | None, output: Path | None, **chosen: Any) -> None:
    """Rewrite MODEL so that the file itself says what is computed in which precision.

    INT8 is written as QuantizeLinear and DequantizeLinear nodes where the backend has a use for
    them, with weights stored as integers; FP16 and BF16 as types. Ranges come from --images or
    from a calibration file. The table tells what was quantized, and why the rest was not.
    """
    from qconvert.pipeline.requests import Request

    config = settings.read(model, chosen)
    suffix = f"-{chosen['backend']}-{chosen['precision']}.onnx"
    request = Request(
        out=settings.place(output, str(config.model), suffix),
        backend=chosen["backend"],
        precision=chosen["precision"],
        calibration=chosen["calibration"],
        plan=chosen["plan"],
        keep_io=chosen["keep_io"],
        trust=chosen["trust"],
    )
    if chosen["dry_run"]:
        _preview(config, request, as_json=chosen["as_json"])
        return
    if chosen["plan_out"] is not None:
        _require_plan_place(chosen["plan_out"], Path(str(config.model)), request)
    done = _quantize(config, request)
    if chosen["plan_out"] is not None:
        _write_plan(done, chosen["plan_out"])
    for text in done.notes:
        console.note(text)
    _show(done, request, as_json=chosen["as_json"])


def _quantize(config: "Config", request: "Request") -> "Quantized":
    from qconvert import store
    from qconvert.pipeline.quantize import quantize

    with Steps() as steps:
        return quantize(config, request, store.default(), steps.tell)


def _require_plan_place(place: Path, model: Path, request: "Request") -> None:
    from qconvert.errors import UsageError
    from qconvert.pipeline.place import require_place

    if request.precision != "int8":
        raise UsageError("there is no plan to write", hint="a plan is for `--precision int8`")
    require_place(place, model, request.out)


def _preview(config: "Config", request: "Request", *, as_json: bool) -> None:
    from dataclasses import asdict

    from qconvert import store
    from qconvert.cli import coverage_table
    from qconvert.errors import UsageError
    from qconvert.pipeline.preview import layers

    if request.plan is not None:
        raise UsageError("a plan says itself what it does", hint="leave `--dry-run` or it out")
    found = layers(config, request, store.default())
    if as_json:
        console.data_json({"layers": {name: asdict(each) for name, each in found.items()}})
    else:
        console.data_table(coverage_table.table(found))


def _write_plan(done: "Quantized", place: Path) -> None:
    from qconvert.quantize import plan_files

    assert done.rewritten.plan is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    planned = plan_files.Planned(done.rewritten.plan, done.rewritten.learned)
    plan_files.save(planned, place)
    console.say(f"    plan: {place}")


def _show(done: "Quantized", request: "Request", *, as_json: bool) -> None:
    from qconvert.cli import coverage_table

    for name, why in list(done.rewritten.islands.items())[:3]:
        console.note(f"`{name}` stays in float32: {why}")
    if len(done.rewritten.islands) > 3:
        console.note(f"and {len(done.rewritten.islands) - 3} more nodes: see `--json`")
    if as_json:
        console.data_json(_as_json(done, request))
    elif done.rewritten.plan is not None:
        console.data_table(coverage_table.table(done.rewritten.plan.layers))


def _as_json(done: "Quantized", request: "Request") -> dict[str, object]:
    from dataclasses import asdict

    from qconvert import onnx_io
    from qconvert.quantize.plan import to_json
    from qconvert.store import digest

    return {
        "model": str(request.out),
        "files": [str(file) for file in onnx_io.files(request.out)],
        "bytes": sum(file.stat().st_size for file in onnx_io.files(request.out)),
        "sha256": digest(request.out),
        "backend": request.backend,
        "precision": request.precision,
        "plan": to_json(done.rewritten.plan) if done.rewritten.plan is not None else None,
        "islands": done.rewritten.islands,
        "tried": [asdict(each) for each in done.rewritten.tried],
        "notes": list(done.notes),
    }
