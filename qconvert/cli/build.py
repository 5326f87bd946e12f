"""`qconvert build`, `tune`, which trains engines, and `demo`, which builds those of its network."""

import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qconvert.cli import console, options
from qconvert.core.sanitize import sanitize_text

if TYPE_CHECKING:
    from qconvert.demo.demo_files import Task


@options.command(
    "qconvert build model.onnx --images calib_data/ --eval val/ -o runs/model",
    "qconvert build --from runs/model --backend tensorrt --max-drop 1",
)
@click.argument("model", required=False)
@options.output("Run folder (default: runs/NAME).")
@click.option(
    "--from",
    "run",
    type=options.PATH,
    metavar="RUN",
    help="Resume a run from another machine; needs no images.",
)
@options.engine_options
@options.image_options
@options.quantize_options
@options.eval_options
@options.bench_options
@options.gate_options
@options.source_options
@options.flag("--plan-only", "Write the graphs without building engines.")
@options.flag("--fresh", "Ignore cached results.")
@options.flag("--dry-run", "Print what would be done without changing anything.")
@options.common_options
def build_command(model: str | None, output: Path | None, run: Path | None, **chosen: Any) -> None:
    """Build engines of MODEL for every backend and precision, time and evaluate them.

    All results are in one folder: the engines, the graphs they were built from, and one report
    with sizes, latencies and accuracies. Run the same command again to resume an interrupted run;
    finished steps are not repeated. Exit code 1 means that a gate failed.
    """
    from qconvert.run import run_folder
    from qconvert.run.build import build
    from qconvert.run.training import TRAIN, require_torch
    from qconvert.run.variants import choose_variants

    if run is not None and output is not None:
        raise click.UsageError("`--from RUN` resumes RUN in its own folder; leave out `-o`")
    context = options.open_job(model, chosen, run)
    config = context.config
    out = run or output or Path("runs") / options.model_name(str(config.model))
    if not chosen["dry_run"]:
        typed = sanitize_text(shlex.join(["qconvert", *sys.argv[1:]]))
        extent = {name: chosen[name] for name in ("plan_only", "workers")}
        report = build(context, out, typed, resumed=run is not None, **extent)
        console.finish(report, as_json=chosen["as_json"], page=out / "report.html")
        return
    if run is not None:
        run_folder.require_same_settings(run_folder.RunFolder(run), config)
    else:
        run_folder.require_inputs_exist(config)
        run_folder.require_usable_folder(out, config)
    require_torch(config.quantize)
    choice = choose_variants(config.build, plan_only=True)
    console.write(f"model     {config.model}")
    console.write(f"calibrate {config.calibration.images or 'no images'}")
    if config.quantize.effort == TRAIN:
        console.write(f"train     {config.quantize.training_steps} steps for each INT8 engine")
    for variant in choice.variants:
        backend = choice.available[variant.backend]
        state = "runs here" if backend.runs else backend.reason
        console.write(f"engine    {variant.name}: {state}")
    console.write(f"evaluate  {config.evaluate.images or 'no images'}")
    console.write(f"write     {out}")
    console.note(*choice.notes)
    if not config.build.precisions:
        console.note(
            "a network of products gets an engine in `int8-dynamic` too, without images in place "
            "of `int8`"
        )


@options.command(
    "qconvert tune runs/model",
    "qconvert tune runs/model --images photos/ --count 2000 --training-steps 4000",
)
@click.argument("run", type=options.PATH)
@click.option(
    "--images",
    type=options.PATH,
    metavar="PATH",
    help="Images to train on; no labels are needed (default: the calibration images).",
)
@options.count("--count", "Train on at most N images (default: as many as were calibrated on).")
@options.count(
    "--training-steps",
    "Steps of training over all blocks, of 8 images each (default: as in the run).",
)
@click.option(
    cls=options.SettingOption,
    paths=["build.backends"],
    help="Backends whose engines are trained (default: those of the run).",
)
@options.eval_options
@options.bench_options
@options.gate_options
@options.flag("--fresh", "Ignore cached results.")
@options.flag("--dry-run", "Print what would be done without changing anything.")
@options.common_options
def tune_command(run: Path, **chosen: Any) -> None:
    """Train the INT8 engines of RUN to give the outputs of FP32, and build them again.

    Weights, biases and ranges of the quantized graph are trained together, on images without
    labels, from where the run is; this needs PyTorch. An engine changes only if its outputs come
    nearer to those of FP32 on images that nothing was trained on. Then everything is timed and
    evaluated again, and a note has the scores before and after. Run the same command again to
    resume an interrupted training. Exit code 1 means that a gate failed.
    """
    from qconvert.run.build import build
    from qconvert.run.tune import TuneRequest, preview_tuning

    request = TuneRequest(*(chosen.pop(name) for name in ("images", "count", "training_steps")))
    context = options.open_job(None, chosen, run)
    if chosen["dry_run"]:
        console.write(*preview_tuning(run, request, context))
        return
    typed = sanitize_text(shlex.join(["qconvert", *sys.argv[1:]]))
    extent = {"workers": chosen["workers"], "tuning": request}
    report = build(context, run, typed, resumed=True, **extent)
    console.finish(report, as_json=chosen["as_json"], page=run / "report.html")


@options.command("qconvert demo", "qconvert demo --task detect --json -o demo")
@options.choice("--task", ("classify", "detect", "segment"), "What the network is for.")
@options.output(
    "Folder for the network, the images and the run (default: qconvert-demo, with the task behind "
    "it where that is not to classify).",
    options.FOLDER,
)
@options.repeated(
    "--backend", "backends", "NAME", "Where engines run, as in `build` (default: cpu)."
)
@click.option(
    "--seconds", default=0.7, show_default=True, help="Minimum seconds of timing per engine."
)
@options.json_option
def demo_command(
    task: "Task", output: Path | None, backends: tuple[str, ...], seconds: float, *, as_json: bool
) -> None:
    """See a whole build on a network and images that come with qconvert.

    The networks recognize, find or outline scratches, dents, cracks, rust and other surface
    defects. Their images are drawn: 128 for calibration, 1000 for evaluation. The rest is an
    ordinary `qconvert build`, and its command is printed. Nothing is downloaded, and no GPU is
    needed.
    """
    from qconvert.core import cache, config_file
    from qconvert.demo.demo_files import NETWORKS, picture_folder, prepare_demo
    from qconvert.run.build import build
    from qconvert.run.context import open_context

    output = output or Path("qconvert-demo" + ("" if task == "classify" else f"-{task}"))
    prepare_demo(output, cache.open_default(), console.PROGRESS.update, task=task)
    network = str(output / NETWORKS[task].name)
    pairs = [
        ("--images", str(picture_folder(output / "calibration", task))),
        ("--eval", str(picture_folder(output / "evaluation", task))),
        ("--backend", ",".join(backends or ("cpu",))),
        ("--seconds", f"{seconds:g}"),
        ("-o", str(output / "run")),
    ]
    words = [f"qconvert build {shlex.quote(network)}", *map(shlex.join, pairs)]
    text = " \\\n      ".join(words)
    console.info(f"\nFor your own model, use the same command with other names:\n\n  {text}\n")
    context = build_command.make_context("build", [network, *chain(*pairs)])
    config = config_file.load(None, options.read_settings(network, context.params))
    run, typed = output / "run", shlex.join(["qconvert", *sys.argv[1:]])
    report = build(open_context(config, console.PROGRESS.update), run, typed)
    console.finish(report, as_json=as_json, page=run / "report.html")
