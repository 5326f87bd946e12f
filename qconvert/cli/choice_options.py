"""Options that decide what is quantized and how; each stands for a setting."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

RESTS = ("fp32", "fp16", "bf16")
EFFORTS = ("none", "quick", "default", "thorough")


def choice_options(command: Command) -> Command:
    """Add what decides which nodes are quantized and how their ranges are chosen."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _words(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[str, ...] | None:
    return tuple(word.strip() for word in given.split(",")) if given else None


_OPTIONS = [
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
        callback=_words,
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
        type=click.Choice(RESTS),
        help="What is not INT8 (default: fp32; engines of TensorRT: fp16).",
    ),
]
