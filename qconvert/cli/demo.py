"""`qconvert demo`."""

import shlex
import sys
from itertools import chain
from pathlib import Path

import click

from qconvert.cli import build, console, options, settings, views


@options.command("qconvert demo", "qconvert demo --json -o demo")
@options.output(
    "Folder for the network, the images and the run.",
    options.FOLDER,
    default="qconvert-demo",
    show_default=True,
)
@options.repeated(
    "--backend", "backends", "NAME", "Where engines run, as in `build` (default: cpu)."
)
@click.option(
    "--seconds", default=0.7, show_default=True, help="Minimum seconds of timing per engine."
)
@options.json_option
def command(output: Path, backends: tuple[str, ...], seconds: float, *, as_json: bool) -> None:
    """See a whole build on a network and images that come with qconvert.

    The network recognizes scratches, dents, cracks, rust and other surface defects. Its images
    are drawn: 128 for calibration, 1000 for evaluation. The rest is an ordinary
    `qconvert build`, and its command is printed. Nothing is downloaded, and no GPU is needed.
    """
    from qconvert.core import cache, config_file
    from qconvert.demo.demo_files import prepare_demo
    from qconvert.run.build import BuildRequest
    from qconvert.run.build import build as run_build
    from qconvert.run.context import open_context

    prepare_demo(output, cache.open_default(), console.PROGRESS.update)
    network = str(output / "network.onnx")
    pairs = [
        ("--images", str(output / "calibration")),
        ("--eval", str(output / "evaluation")),
        ("--backend", ",".join(backends or ("cpu",))),
        ("--seconds", f"{seconds:g}"),
        ("-o", str(output / "run")),
    ]
    words = [f"qconvert build {shlex.quote(network)}", *map(shlex.join, pairs)]
    text = " \\\n      ".join(words)
    console.info(f"\nFor your own model, use the same command with other names:\n\n  {text}\n")
    context = build.command.make_context("build", [network, *chain(*pairs)])
    config = config_file.load(None, settings.from_options(network, context.params))
    request = BuildRequest(output / "run", shlex.join(["qconvert", *sys.argv[1:]]))
    report = run_build(open_context(config, console.PROGRESS.update), request)
    views.finish(report, as_json=as_json, page=request.out / "report.html")
