"""Options that mean the same on every command that has them."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from qconvert.cli import console

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_DIGITS = 18


def verbosity_options(command: Command) -> Command:
    """Add `-q` and `-v`."""

    def louder(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
        console.VERBOSITY.level += count
        if count > 1:
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", force=True)

    def quieter(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
        console.VERBOSITY.level -= count

    counted = partial(click.option, count=True, expose_value=False, is_eager=True)
    quiet = counted("-q", "--quiet", callback=quieter, help="Errors only; -qq: exit code only.")
    verbose = counted(
        "-v", "--verbose", callback=louder, help="More details; -vv: logs of libraries."
    )
    return verbose(quiet(command))


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")(
        command
    )


def settings_options(command: Command) -> Command:
    """Add `--config` and `--set`."""
    command = click.option(
        "--set",
        "assigned",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting; repeatable.",
    )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings file (default: ./qconvert.toml if there is one).",
    )(command)


def source_options(command: Command) -> Command:
    """Add what a source needs to be read: `--input`, `--weights`, `--batch`, `--trust`."""
    for option in reversed(
        [
            click.option(
                "--input",
                "inputs",
                multiple=True,
                metavar="NAME:SHAPE[:TYPE]",
                help="Shape the source does not say, as image:1x3x224x224; repeatable.",
            ),
            click.option(
                "--weights",
                metavar="FILE",
                help="Checkpoint (.pt, .pth, .safetensors) for a factory or a named net; "
                "`random` for none.",
            ),
            click.option(
                "--batch",
                callback=_parse_batch,
                metavar="dynamic|N",
                help="Open or fix the batch dimension.",
            ),
            click.option(
                "--trust", is_flag=True, help="Let a checkpoint run the code it brings when read."
            ),
        ]
    ):
        command = option(command)
    return command


def _parse_batch(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> str | int | None:
    """Read a number; words are for the settings to judge."""
    found = parse_int(given or "")
    return given if found is None else found


def parse_int(given: str) -> int | None:
    """Return a whole number, None for what is none or has more digits than anybody means.

    Python refuses to read very long ones.
    """
    return int(given) if given.isdecimal() and len(given) <= MAX_DIGITS else None


ImageCommand = TypeVar("ImageCommand", bound=Callable[..., Any])

# Named here too, so that `--help` needs not import what they stand for; a test compares.
PRESETS = ("imagenet", "inception", "clip", "unit", "raw")
INTERPOLATIONS = ("bilinear", "bicubic", "box")
DEFAULT_COUNT = 512
SIZE_WORDS = ("fit", "none")


def image_options(command: ImageCommand) -> ImageCommand:
    """Add `--images`, how many of them, how they are prepared and how they are read."""
    for option in reversed(_IMAGE_OPTIONS + _PREPROCESS_OPTIONS + _READING_OPTIONS):
        command = option(command)
    return command


def preprocess_options(command: ImageCommand) -> ImageCommand:
    """Add how images are prepared."""
    for option in reversed(_PREPROCESS_OPTIONS):
        command = option(command)
    return command


def _parse_resize(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> int | tuple[int, int] | str | None:
    """Read `256`, `320x224` (width first), `fit` or `none`."""
    if given is None or given in SIZE_WORDS:
        return given
    side, (width, _, height) = parse_int(given), given.partition("x")
    across, down = parse_int(width), parse_int(height)
    if across is not None and down is not None:
        return across, down
    if side is not None:
        return side
    raise click.BadParameter(f"`{given}` is not a number, WIDTHxHEIGHT, `fit` or `none`")


def _parse_crop(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> int | str | None:
    """Read `224`, `fit` or `none`."""
    if given is None or given in SIZE_WORDS:
        return given
    if (side := parse_int(given)) is not None:
        return side
    raise click.BadParameter(f"`{given}` is not a number, `fit` or `none`; a crop is square")


def _parse_floats(
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


_IMAGE_PATH = click.Path(path_type=Path)

_IMAGE_OPTIONS = [
    click.option(
        "--images",
        type=_IMAGE_PATH,
        help="Calibration images: a folder, a list file, a CSV, or arrays (.npz, .npy).",
    ),
    click.option(
        "--count",
        type=click.IntRange(min=1),
        help=f"At most so many of them (default: {DEFAULT_COUNT}).",
    ),
]

_PREPROCESS_OPTIONS = [
    click.option(
        "--preprocess",
        type=click.Choice(PRESETS),
        help="Preset of what is done to a picture (default: imagenet).",
    ),
    click.option(
        "--resize",
        callback=_parse_resize,
        metavar="N|WxH|none",
        help="Shorter side, or exact size (default: follows the model).",
    ),
    click.option(
        "--crop",
        callback=_parse_crop,
        metavar="N|none",
        help="Side of the centre crop (default: follows the model).",
    ),
    click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="How to resize."),
    click.option(
        "--mean",
        callback=_parse_floats,
        metavar="A[,B,C]",
        help="Mean of pixels scaled to 0..1, one or three numbers.",
    ),
    click.option(
        "--std",
        callback=_parse_floats,
        metavar="A[,B,C]",
        help="Standard deviation of pixels scaled to 0..1.",
    ),
]

_READING_OPTIONS = [
    click.option(
        "--max-broken",
        type=click.IntRange(min=0),
        metavar="N",
        help="Unreadable files to put up with (default: 10 %, at least 10).",
    ),
]


QuantizeCommand = TypeVar("QuantizeCommand", bound=Callable[..., Any])

FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")
EFFORTS = ("none", "quick", "default", "thorough")


def quantize_options(command: QuantizeCommand) -> QuantizeCommand:
    """Add what decides which nodes are quantized and how their ranges are chosen."""
    for option in reversed(_QUANTIZE_OPTIONS):
        command = option(command)
    return command


def _parse_keep(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[str, ...] | None:
    return tuple(word.strip() for word in given.split(",")) if given else None


_QUANTIZE_OPTIONS = [
    click.option(
        "--method",
        metavar="NAME",
        help="How ranges are chosen: mse, minmax, moving-average, entropy, percentile:P, "
        "answers, or auto: the one nearest to FP32 (default; mse with less effort).",
    ),
    click.option(
        "--effort",
        type=click.Choice(EFFORTS),
        help="How long weights are learned (default: default; none: nearest integers).",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Nodes to leave in float, by name or operator; repeatable.",
    ),
    click.option(
        "--only", multiple=True, metavar="GLOB", help="Quantize nothing else; repeatable."
    ),
    click.option(
        "--keep",
        callback=_parse_keep,
        metavar="first,last",
        help="Leave the first or last layers in float.",
    ),
    click.option(
        "--weight-bits",
        type=click.IntRange(5, 8),
        metavar="N",
        help="Bits of weights; 7 is safe on x86 without VNNI (default: 8).",
    ),
    click.option(
        "--rest",
        type=click.Choice(FLOAT_PRECISIONS),
        help="What is not INT8 (default: fp32; engines of TensorRT: fp16).",
    ),
]


BuildCommand = TypeVar("BuildCommand", bound=Callable[..., Any])

_EVAL_PATH = click.Path(path_type=Path)


def parse_words(
    ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Read words given with commas, one by one, or both."""
    found = [word.strip() for each in given for word in each.split(",")]
    return tuple(word for word in found if word) or None


def parse_ints(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[int, ...] | None:
    """Read whole numbers with commas between them."""
    if given is None:
        return None
    found = [parse_int(part.strip()) for part in given.split(",")]
    known = tuple(each for each in found if each is not None)
    if len(known) < len(found):
        raise click.BadParameter(f"`{given}` is not a list of numbers, as in 1,8")
    return known


def engine_options(command: BuildCommand) -> BuildCommand:
    """Add which engines are built."""
    return _add_options(
        command,
        click.option(
            "--backend",
            "backends",
            multiple=True,
            callback=parse_words,
            metavar="NAME",
            help="cpu, cuda, tensorrt, tensorrt-rtx; repeat or comma (default: the best here).",
        ),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            callback=parse_words,
            metavar="NAME",
            help="fp32, fp16, bf16, int8, mixed; repeat or comma (default: fp32,fp16,int8).",
        ),
        click.option(
            "--profile",
            callback=parse_ints,
            metavar="MIN,BEST,MAX",
            help="Batch sizes an engine is built for (default: 1,8,32).",
        ),
        click.option(
            "--budget",
            type=float,
            metavar="PP",
            help="Points that `mixed` may lose (default: 0.5).",
        ),
        click.option(
            "--allow-fallback",
            is_flag=True,
            help="Let the CPU run what a GPU's provider cannot, and list it.",
        ),
    )


def bench_options(command: BuildCommand) -> BuildCommand:
    """Add how engines are timed."""
    return _add_options(
        command,
        click.option(
            "--batch-sizes",
            callback=parse_ints,
            metavar="N,N",
            help="Images a run while timing (default: 1,8).",
        ),
        click.option("--seconds", type=float, help="At least so long an engine (default: 3)."),
    )


def eval_options(command: BuildCommand) -> BuildCommand:
    """Add on which images answers are compared."""
    return _add_options(
        command,
        click.option(
            "--eval",
            "eval_images",
            type=_EVAL_PATH,
            help="Images to compare answers on: a folder, a list file, a CSV, or arrays.",
        ),
        click.option(
            "--labels",
            type=_EVAL_PATH,
            help="CSV file,label (default: class folders, if there are any).",
        ),
        click.option(
            "--eval-count", type=click.IntRange(min=1), help="At most so many (default: all)."
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="Threads that read images (default: one for each core).",
        ),
    )


def gate_options(command: BuildCommand) -> BuildCommand:
    """Add the limits that every engine must keep."""
    return _add_options(
        command,
        click.option("--max-drop", type=float, metavar="PP", help="Points of top-1 to lose."),
        click.option("--min-agreement", type=float, metavar="PCT", help="Answers as by FP32."),
        click.option("--max-latency", type=float, metavar="MS", help="Median milliseconds."),
        click.option("--min-speedup", type=float, metavar="X", help="Times fp32 there."),
        click.option("--max-size", type=float, metavar="MB", help="Megabytes of an engine."),
        click.option(
            "--allow-unmeasured", is_flag=True, help="Let pass what cannot be measured here."
        ),
    )


def _add_options(command: BuildCommand, *options: Callable[[Any], Any]) -> BuildCommand:
    for option in reversed(options):
        command = option(command)
    return command
