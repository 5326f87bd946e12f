"""Options of every command that reads images; each stands for a setting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qconvert.cli.options import whole

Command = TypeVar("Command", bound=Callable[..., Any])

# Named here too, so that `--help` needs not import what they stand for; a test compares.
PRESETS = ("imagenet", "inception", "clip", "unit", "raw")
INTERPOLATIONS = ("bilinear", "bicubic", "box")
COUNT = 512
_WORDS = ("fit", "none")


def image_options(command: Command) -> Command:
    """Add `--images`, how many of them, how they are prepared and how they are read."""
    for option in reversed(_IMAGES + _PREPROCESS + _READING):
        command = option(command)
    return command


def preprocess_options(command: Command) -> Command:
    """Add how images are prepared."""
    for option in reversed(_PREPROCESS):
        command = option(command)
    return command


def _resize(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> int | tuple[int, int] | str | None:
    """Read `256`, `320x224` (width first), `fit` or `none`."""
    if given is None or given in _WORDS:
        return given
    side, (width, _, height) = whole(given), given.partition("x")
    across, down = whole(width), whole(height)
    if across is not None and down is not None:
        return across, down
    if side is not None:
        return side
    raise click.BadParameter(f"`{given}` is not a number, WIDTHxHEIGHT, `fit` or `none`")


def _crop(ctx: click.Context, parameter: click.Parameter, given: str | None) -> int | str | None:
    """Read `224`, `fit` or `none`."""
    if given is None or given in _WORDS:
        return given
    if (side := whole(given)) is not None:
        return side
    raise click.BadParameter(f"`{given}` is not a number, `fit` or `none`; a crop is square")


def _numbers(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[float, ...] | None:
    """Read `0.5`, `127/255`, or one such number per channel, as `0.485,0.456,0.406`."""
    from fractions import Fraction

    if given is None:
        return None
    try:
        return tuple(float(Fraction(part.strip())) for part in given.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise click.BadParameter(f"`{given}` is not one number, or three as in 1,2,3") from None


_PATH = click.Path(path_type=Path)

_IMAGES = [
    click.option(
        "--images",
        type=_PATH,
        help="Calibration images: a folder, a list file, a CSV, or arrays (.npz, .npy).",
    ),
    click.option(
        "--count",
        type=click.IntRange(min=1),
        help=f"At most so many of them (default: {COUNT}).",
    ),
]

_PREPROCESS = [
    click.option(
        "--preprocess",
        type=click.Choice(PRESETS),
        help="Preset of what is done to a picture (default: imagenet).",
    ),
    click.option(
        "--resize",
        callback=_resize,
        metavar="N|WxH|none",
        help="Shorter side, or exact size (default: follows the model).",
    ),
    click.option(
        "--crop",
        callback=_crop,
        metavar="N|none",
        help="Side of the centre crop (default: follows the model).",
    ),
    click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="How to resize."),
    click.option(
        "--mean",
        callback=_numbers,
        metavar="A[,B,C]",
        help="Mean of pixels scaled to 0..1, one or three numbers.",
    ),
    click.option(
        "--std",
        callback=_numbers,
        metavar="A[,B,C]",
        help="Standard deviation of pixels scaled to 0..1.",
    ),
]

_READING = [
    click.option(
        "--max-broken",
        type=click.IntRange(min=0),
        metavar="N",
        help="Unreadable files to put up with (default: 10 %, at least 10).",
    ),
]
