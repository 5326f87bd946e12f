"""`qconvert demo`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.cli import build, console, options, settings
from qconvert.cli.build_options import words
from qconvert.cli.steps import Steps

if TYPE_CHECKING:
    from qconvert.demo.scene import Scene

EXAMPLES = """\b
Examples:
  qconvert demo
  qconvert demo --json -o demo"""


@click.command(epilog=EXAMPLES)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="qconvert-demo",
    show_default=True,
    help="Where network, pictures and run go.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    callback=words,
    metavar="NAME",
    help="Where engines run, as in `build` (default: cpu).",
)
@click.option(
    "--seconds", type=float, default=0.7, show_default=True, help="At least so long an engine."
)
@options.as_json
@options.talk
def command(
    output: Path, backends: tuple[str, ...] | None, seconds: float, *, as_json: bool
) -> None:
    """See the whole job done, on a network and pictures that come with qconvert.

    The network tells scratches, dents, cracks, rust and other defects of surfaces apart. The
    pictures are drawn: 128 to calibrate on, 1000 to score on. Then comes what `qconvert build` does
    with a model of yours, by the command that is printed. Nothing is downloaded; no GPU is needed.
    """
    from qconvert import config_file, store
    from qconvert.demo.scene import lay
    from qconvert.pipeline.build import Order

    with Steps() as steps:
        scene = lay(output, store.default(), steps.tell)
    typed = _typed(scene, backends or ("cpu",), seconds)
    console.say(
        f"\nThe same command, with other names, is for a model of yours:\n\n{_shown(typed)}\n"
    )
    context = build.command.make_context("build", list(typed))
    config = config_file.load(None, settings.typed(context.params["model"], context.params))
    order = Order(context.params["output"], shlex.join(["qconvert", *sys.argv[1:]]))
    build.carry_out(config, order, as_json=as_json)


def _typed(scene: "Scene", backends: tuple[str, ...], seconds: float) -> tuple[str, ...]:
    """Return the arguments of the `qconvert build` that does the same."""
    from qconvert.demo.scene import CALIBRATION, EVALUATION

    images, others = scene.pictures(CALIBRATION), scene.pictures(EVALUATION)
    return (
        str(scene.network),
        *("--images", str(images)),
        *("--eval", str(others)),
        *("--backend", ",".join(backends)),
        *("--seconds", f"{seconds:g}"),
        *("-o", str(scene.run)),
    )


def _shown(typed: tuple[str, ...]) -> str:
    """Return the command as it can be copied, an option or two a line."""
    model, *others = typed
    pairs = [shlex.join(others[at : at + 2]) for at in range(0, len(others), 2)]
    return " \\\n      ".join([f"  qconvert build {shlex.quote(model)}", *pairs])
