"""Options of every command that reads images, and the values they stand for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qconvert.images import ImageChoice
    from qconvert.images.preprocess import Preprocess
    from qconvert.images.reading import Reading

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


def labels_options(command: Command) -> Command:
    """Add `--eval`, its labels, and how many of them."""
    for option in reversed(_EVAL):
        command = option(command)
    return command


def image_choice(chosen: Mapping[str, Any]) -> "ImageChoice | None":
    """Return which images `--images` and `--count` ask for, None without `--images`."""
    from qconvert.images import ImageChoice

    path = chosen["images"]
    return None if path is None else ImageChoice(path, chosen["count"] or COUNT)


def eval_choice(chosen: Mapping[str, Any]) -> "ImageChoice | None":
    """Return which images `--eval` asks for, None without it."""
    from qconvert.errors import UsageError
    from qconvert.images import ImageChoice

    path, labels = chosen["eval_path"], chosen["labels"]
    if path is not None:
        return ImageChoice(path, chosen["eval_count"], labels)
    if labels is not None or chosen["eval_count"] is not None:
        given = "--labels" if labels is not None else "--eval-count"
        raise UsageError(f"`{given}` needs `--eval`", hint="say which images: `--eval PATH`")
    return None


def preprocess(chosen: Mapping[str, Any], base: "Preprocess | None" = None) -> "Preprocess":
    """Return the preset with the single settings laid over it.

    Without `--preprocess` that is `base`, what the source or the settings say, else `imagenet`.
    """
    from dataclasses import replace

    from qconvert.errors import UsageError
    from qconvert.images.preprocess import PRESETS

    if base is None or chosen["preprocess"] is not None:
        base = PRESETS[chosen["preprocess"] or "imagenet"]
    keys = ("resize", "crop", "interpolation", "mean", "std")
    given = {key: chosen[key] for key in keys if chosen[key] is not None}
    try:
        return replace(base, **given)
    except ValueError as error:
        raise UsageError(str(error), hint="see `--resize`, `--crop`, `--mean`, `--std`") from None


def reading(chosen: Mapping[str, Any]) -> "Reading":
    """Return how `--workers` and `--max-broken` want the files read."""
    from qconvert.images.reading import Reading

    return Reading(workers=chosen["workers"], max_broken=chosen["max_broken"])


def _resize(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> int | tuple[int, int] | str | None:
    """Read `256`, `320x224` (width first), `fit` or `none`."""
    width, by, height = (given or "").partition("x")
    if by and width.isdecimal() and height.isdecimal():
        return int(width), int(height)
    if given is None or given in _WORDS or given.isdecimal():
        return int(given) if given and given.isdecimal() else given
    raise click.BadParameter(f"`{given}` is not a number, WIDTHxHEIGHT, `fit` or `none`")


def _crop(ctx: click.Context, parameter: click.Parameter, given: str | None) -> int | str | None:
    """Read `224`, `fit` or `none`."""
    if given is None or given in _WORDS or given.isdecimal():
        return int(given) if given and given.isdecimal() else given
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
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads that decode pictures (default: one a core).",
    ),
]

_EVAL = [
    click.option(
        "--eval",
        "eval_path",
        type=_PATH,
        help="Images to measure accuracy on, as for --images, with labels.",
    ),
    click.option(
        "--labels",
        type=_PATH,
        metavar="FILE",
        help="CSV `file,label` for --eval (default: labels.csv there, or class folders).",
    ),
    click.option(
        "--eval-count",
        type=click.IntRange(min=1),
        metavar="N",
        help="At most so many of them (default: all).",
    ),
]
