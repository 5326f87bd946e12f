"""Options of the commands that build, time and score engines; each stands for a setting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qconvert.cli.options import whole

Command = TypeVar("Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)


def words(
    ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Read words given with commas, one by one, or both."""
    found = [word.strip() for each in given for word in each.split(",")]
    return tuple(word for word in found if word) or None


def numbers(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[int, ...] | None:
    """Read whole numbers with commas between them."""
    if given is None:
        return None
    found = [whole(part.strip()) for part in given.split(",")]
    known = tuple(each for each in found if each is not None)
    if len(known) < len(found):
        raise click.BadParameter(f"`{given}` is not a list of numbers, as in 1,8")
    return known


def engine_options(command: Command) -> Command:
    """Add which engines are built."""
    return _added(
        command,
        click.option(
            "--backend",
            "backends",
            multiple=True,
            callback=words,
            metavar="NAME",
            help="cpu, cuda, tensorrt, tensorrt-rtx; repeat or comma (default: the best here).",
        ),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            callback=words,
            metavar="NAME",
            help="fp32, fp16, bf16, int8, mixed; repeat or comma (default: fp32,fp16,int8).",
        ),
        click.option(
            "--profile",
            callback=numbers,
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


def bench_options(command: Command) -> Command:
    """Add how engines are timed."""
    return _added(
        command,
        click.option(
            "--batch-sizes",
            callback=numbers,
            metavar="N,N",
            help="Images a run while timing (default: 1,8).",
        ),
        click.option("--seconds", type=float, help="At least so long an engine (default: 3)."),
    )


def eval_options(command: Command) -> Command:
    """Add on which images answers are compared."""
    return _added(
        command,
        click.option(
            "--eval",
            "eval_images",
            type=_PATH,
            help="Images to compare answers on: a folder, a list file, a CSV, or arrays.",
        ),
        click.option(
            "--labels",
            type=_PATH,
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


def gate_options(command: Command) -> Command:
    """Add the limits that every engine must keep."""
    return _added(
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


def _added(command: Command, *options: Callable[[Any], Any]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
