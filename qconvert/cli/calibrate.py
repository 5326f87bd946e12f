"""`qconvert calibrate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options, settings
from qconvert.cli.options import image_options
from qconvert.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from qconvert.calibrate.calibration import Calibration

EXAMPLES = """\b
Examples:
  qconvert calibrate model.onnx --images calib_data/ -o calibration.npz
  qconvert calibrate --show calibration.npz --method percentile:99.99"""

FEW = 32
MOVING = 0.05


def _shard(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[int, int] | None:
    """Read `2/8`: the second of eight parts."""
    if given is None:
        return None
    number, count = map(options.parse_int, given.partition("/")[::2])
    if number is None or count is None or not 1 <= number <= count:
        raise click.BadParameter(f"`{given}` is not I/N, as in 2/8 for the second of eight parts")
    return number, count


@click.command(epilog=EXAMPLES)
@click.argument("what", nargs=-1, metavar="MODEL | FILE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The calibration file (default: calibration.npz).",
)
@options.source_options
@image_options
@options.setting_options("calibration.exact")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Processes to split the images over (default: 1, which uses every core).",
)
@click.option("--shard", callback=_shard, metavar="I/N", help="Only part I of N; merge them later.")
@click.option("--merge", is_flag=True, help="Add the parts FILE... to one.")
@click.option("--show", is_flag=True, help="Print the ranges of FILE, or of the new calibration.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Method to show: mse, minmax, moving-average, entropy, percentile:P; repeatable.",
)
@click.option("--symmetric", is_flag=True, help="Show ranges for a symmetric grid (TensorRT).")
@click.option("--fresh", is_flag=True, help="Start over, whatever is done already.")
@options.settings_options
@options.json_option
@options.verbosity_options
def command(what: tuple[str, ...], output: Path | None, **chosen: Any) -> None:
    """Measure over images what every tensor of MODEL holds, once for all methods.

    One pass keeps exact extremes and counts of values for each tensor in one small file. Every
    range method is computed from that file; trying another runs no image again. A run that was
    stopped goes on where it was. Parts measured elsewhere with --shard add up with --merge to the
    same bytes as one run.
    """
    from qconvert.core.errors import UsageError

    if chosen["merge"]:
        _merge([Path(each) for each in what], output)
        return
    if chosen["show"] and len(what) == 1 and what[0].endswith(".npz"):
        from qconvert.calibrate import calibration_file

        _show(calibration_file.load(Path(what[0])), chosen)
        return
    if len(what) > 1:
        raise UsageError("one model at a time", hint="to add parts: `--merge A.npz B.npz -o C.npz`")
    found = _measure(what[0] if what else None, output or Path("calibration.npz"), chosen)
    _tell_broken(found, chosen["shard"])
    _warn(found)
    if chosen["show"] or chosen["as_json"]:
        _show(found, chosen)


def _measure(model: str | None, output: Path, chosen: dict[str, Any]) -> "Calibration":
    from qconvert.core import cache
    from qconvert.run.calibrate import CalibrationRequest, calibrate

    config = settings.load(model, chosen)
    job = CalibrationRequest(
        output, chosen["workers"], chosen["shard"], chosen["fresh"], chosen["trust"]
    )
    with ProgressDisplay() as steps:
        return calibrate(config, job, cache.open_default(), steps.update)


def _merge(parts: Sequence[Path], output: Path | None) -> None:
    from functools import reduce

    from qconvert.calibrate import calibration_file
    from qconvert.calibrate.calibration import merge_calibrations
    from qconvert.core.errors import UsageError
    from qconvert.run.run_folder import require_output_file

    if len(parts) < 2 or output is None:
        hint = "`qconvert calibrate --merge A.npz B.npz -o ALL.npz`"
        raise UsageError("`--merge` needs two or more parts and `-o`", hint=hint)
    require_output_file(output)
    whole = reduce(merge_calibrations, (calibration_file.load(part) for part in parts))
    calibration_file.save(whole, output)
    left = sum(len(run) for run in whole.missing_images())
    of = f", {left} of the list are in none of the parts" if left else ""
    console.info(f"wrote {output}: {whole.image_indices.size} images from {len(parts)} parts{of}")


def _tell_broken(found: "Calibration", shard: tuple[int, int] | None) -> None:
    from qconvert.run.calibrate import shard_range

    images = found.origin.images
    names = [
        images[at].name
        for run in found.missing_images(shard_range(len(images), shard))
        for at in run
    ]
    if names:
        shown = ", ".join(f"`{name}`" for name in names[:3]) + (", …" if names[3:] else "")
        console.note(f"{len(names)} of {len(images)} images could not be read: {shown}")


def _warn(found: "Calibration") -> None:
    from qconvert.calibrate.histogram import range_drift

    if found.image_indices.size < FEW:
        console.note(f"{found.image_indices.size} images are few; 100 to 500 are usual")
        return
    moving = [
        name for name, seen in found.summaries.items() if seen.size and range_drift(seen) > MOVING
    ]
    if moving:
        console.note(
            f"{len(moving)} of {len(found.summaries)} ranges still moved by more than "
            f"{MOVING:.0%} in the last quarter; use more images"
        )


def _show(found: "Calibration", chosen: dict[str, Any]) -> None:
    from qconvert.cli import views
    from qconvert.core.scales import Grid

    methods = chosen["methods"] or ("mse",)
    grid = Grid(symmetric=chosen["symmetric"])
    rows = views.range_rows(found, methods, grid)
    if chosen["as_json"]:
        console.write_json(views.ranges_json(found, rows))
    else:
        console.write_table(views.ranges_table(rows, methods))
