"""`qconvert demo`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.cli import build, console, options, settings
from qconvert.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from qconvert.demo.demo_files import DemoFolder

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
    metavar="NAME",
    help="Where engines run, as in `build` (default: cpu).",
)
@click.option(
    "--seconds", type=float, default=0.7, show_default=True, help="At least so long an engine."
)
@options.json_option
@options.verbosity_options
def command(
    output: Path, backends: tuple[str, ...] | None, seconds: float, *, as_json: bool
) -> None:
    """See the whole job done, on a network and pictures that come with qconvert.

    The network tells scratches, dents, cracks, rust and other defects of surfaces apart. The
    pictures are drawn: 128 to calibrate on, 1000 to score on. Then comes what `qconvert build` does
    with a model of yours, by the command that is printed. Nothing is downloaded; no GPU is needed.
    """
    from qconvert.core import cache, config_file
    from qconvert.demo.demo_files import prepare_demo
    from qconvert.run.build import BuildRequest

    with ProgressDisplay() as steps:
        scene = prepare_demo(output, cache.open_default(), steps.update)
    typed = _typed(scene, backends or ("cpu",), seconds)
    console.info(
        f"\nThe same command, with other names, is for a model of yours:\n\n{_shown(typed)}\n"
    )
    context = build.command.make_context("build", list(typed))
    config = config_file.load(None, settings.from_options(context.params["model"], context.params))
    order = BuildRequest(context.params["output"], shlex.join(["qconvert", *sys.argv[1:]]))
    build.build_and_report(config, order, as_json=as_json)


def _typed(scene: "DemoFolder", backends: tuple[str, ...], seconds: float) -> tuple[str, ...]:
    """Return the arguments of the `qconvert build` that does the same."""
    from qconvert.demo.demo_files import CALIBRATION_IMAGES, EVALUATION_IMAGES

    images, others = scene.images(CALIBRATION_IMAGES), scene.images(EVALUATION_IMAGES)
    return (
        str(scene.network),
        *("--images", str(images)),
        *("--eval", str(others)),
        *("--backend", ",".join(backends)),
        *("--seconds", f"{seconds:g}"),
        *("-o", str(scene.run_folder)),
    )


def _shown(typed: tuple[str, ...]) -> str:
    """Return the command as it can be copied, an option or two a line."""
    model, *others = typed
    pairs = [shlex.join(others[at : at + 2]) for at in range(0, len(others), 2)]
    return " \\\n      ".join([f"  qconvert build {shlex.quote(model)}", *pairs])
