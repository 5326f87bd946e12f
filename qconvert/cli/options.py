"""Options that mean the same on every command that has them."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from qconvert.cli import console

Command = TypeVar("Command", bound=Callable[..., Any])

MOST_DIGITS = 18


def talk(command: Command) -> Command:
    """Add `-q` and `-v`."""

    def louder(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
        console.LOUDNESS.level += count
        if count > 1:
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", force=True)

    def quieter(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
        console.LOUDNESS.level -= count

    counted = partial(click.option, count=True, expose_value=False, is_eager=True)
    quiet = counted("-q", "--quiet", callback=quieter, help="Errors only; -qq: exit code only.")
    verbose = counted(
        "-v", "--verbose", callback=louder, help="More details; -vv: logs of libraries."
    )
    return verbose(quiet(command))


def as_json(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")(
        command
    )


def settings(command: Command) -> Command:
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


def source(command: Command) -> Command:
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
                callback=_number,
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


def _number(ctx: click.Context, parameter: click.Parameter, given: str | None) -> str | int | None:
    """Read a number; words are for the settings to judge."""
    found = whole(given or "")
    return given if found is None else found


def whole(given: str) -> int | None:
    """Return a whole number, None for what is none or has more digits than anybody means.

    Python refuses to read very long ones.
    """
    return int(given) if given.isdecimal() and len(given) <= MOST_DIGITS else None
