"""Commands on finished engines: `bench`, `evaluate`, `compare`, `report` and `package`."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from qconvert.cli import console, options
from qconvert.package import Format


@options.command(
    "qconvert bench runs/model", "qconvert bench fp32.onnx int8.onnx --batch-sizes 1,8,32"
)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=options.PATH)
@options.bench_options
@options.gate_options
@options.common_options
def bench_command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Time engines in interleaved rounds, so that machine drift affects all of them equally.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU. For a whole RUN, the
    latencies are added to its report, including those that the build machine could not measure.
    """
    from qconvert.run.bench import bench
    from qconvert.run.targets import resolve

    target = resolve(targets)
    folder = target.run.root if target.run is not None else None
    report = bench(target, options.open_job(None, chosen, folder, engines=True))
    console.finish(report, as_json=chosen["as_json"], tables=("latency", "gpu", "timing"))


@options.command(
    "qconvert evaluate runs/model --eval val/ --labels labels.csv",
    "qconvert evaluate fp32.onnx int8.onnx --eval val/",
    "qconvert evaluate detector.onnx --eval val/images/ --labels annotations.json",
)
@click.argument("targets", nargs=-1, metavar="RUN | ENGINE...", type=options.PATH)
@options.eval_options
@options.preprocess_options
@options.gate_options
@options.common_options
def evaluate_command(targets: tuple[Path, ...], **chosen: Any) -> None:
    """Compare the outputs of engines on the same images with FP32 and, if known, with labels.

    An engine is RUN/engines/NAME or an ONNX file, which runs on the CPU; of several files the
    first is the reference. For a whole RUN the accuracies go into its report.
    """
    from qconvert.run.evaluate import evaluate
    from qconvert.run.targets import resolve

    target = resolve(targets)
    folder = target.run.root if target.run is not None else None
    context = options.open_job(None, chosen, folder, engines=True)
    report = evaluate(target, context, chosen["workers"])
    console.finish(report, as_json=chosen["as_json"], tables=("accuracy", "chain"))


@options.command(
    "qconvert compare model.onnx int8.onnx --images val/ -o layers.csv",
    "qconvert compare runs/m/model.onnx runs/m/engines/cpu-int8 --layers 'Conv'",
)
@click.argument("first", metavar="A", type=options.PATH)
@click.argument("second", metavar="B", type=options.PATH)
@options.repeated(
    "--layers", "patterns", "GLOB", "Only these layers, by tensor, node or operator; repeatable."
)
@click.option(
    "--images",
    cls=options.SettingOption,
    paths=["evaluate.images"],
    help="Images to run on (default: those of the run that A or B belongs to).",
)
@options.count("--count", "Use at most this many images.", default=32, show_default=True)
@options.output("Write the errors of all layers as CSV.", options.FILE)
@options.preprocess_options
@options.common_options
def compare_command(first: Path, second: Path, output: Path | None, **chosen: Any) -> None:
    """Compare B with A layer by layer: the error that arrives at each layer and the error it adds.

    A and B are ONNX files or RUN/engines/NAME, one of them made from the other. Errors are SQNR in
    decibels: 20 dB is an error of 10 %, 40 dB of 1 %. The arriving error comes from the layer and
    all layers before it; the error that a layer makes is measured with exact inputs.
    """
    from qconvert.core.atomic import write_text
    from qconvert.report.tables import layers_csv
    from qconvert.run import compare
    from qconvert.run.run_folder import require_output_file

    reference, graph, run = compare.find_graphs(first, second)
    if output is not None:
        require_output_file(output, first, second)
    context = options.open_job(None, chosen, run, engines=True)
    all_layers = compare.compare_graphs(reference, graph, chosen["count"], context)
    layers = compare.select_layers(all_layers, chosen["patterns"])
    if output is not None:
        write_text(output, layers_csv({second.name: all_layers}))
    if chosen["as_json"]:
        console.write_json(compare.layers_to_json(layers))
    else:
        console.show_layer_errors(layers)


@options.command(
    "qconvert report runs/model", "qconvert report runs/model --format html -o report.html"
)
@click.argument("run", type=options.PATH)
@options.choice("--format", ("text", "html", "md", "json", "card"), "Output format.", "form")
@click.option(
    "--engine",
    default="",
    metavar="NAME",
    help="Engine of the model card (default: the verdict's).",
)
@options.output("Write to a file (not for text).", options.FILE)
def report_command(run: Path, form: str, engine: str, output: Path | None) -> None:
    """Show the report of a finished RUN from its report.json; nothing is measured.

    RUN is the run folder or the JSON file; an HTML page includes the images in the same folder.
    """
    from qconvert.core.atomic import write_text
    from qconvert.report import html, json_file, markdown
    from qconvert.run.report_files import report_images
    from qconvert.run.run_folder import require_output_file

    if form == "text" and output is not None:
        raise click.UsageError("`-o` needs a format for files: `--format html`")
    if engine and form != "card":
        raise click.UsageError("`--engine` is for a card: `--format card`")
    file = run / "report.json" if run.is_dir() else run
    report = json_file.load(file)
    if form == "text":
        console.show_report(report)
        return
    if form == "json" and output is None:
        console.write_json(json_file.to_json(report))
        return
    writers: dict[str, Callable[[], str]] = {
        "html": lambda: html.render_html(report, report_images(report, file.parent)),
        "md": lambda: markdown.render_markdown(report),
        "json": lambda: json_file.dumps(report),
        "card": lambda: markdown.render_card(report, engine),
    }
    text = writers[form]()
    if output is None:
        console.write(text)
    else:
        require_output_file(output)
        write_text(output, text)


@options.command(
    "qconvert package runs/model --format onnxruntime -o model-int8/",
    "qconvert package runs/model --format triton --engine cpu-int8 -o models/",
)
@click.argument("run", type=options.PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(Format)),
    required=True,
    help="Runtime that will load the engine.",
)
@options.output("The folder to write.", required=True)
@click.option(
    "--engine", default="", metavar="NAME", help="Engine to package (default: the verdict's)."
)
@click.option("--name", default="", help="Name of the model (default: as in the run).")
@click.option("--classes", type=options.PATH, help="Class names, one per line.")
@options.json_option
def package_command(run: Path, form: Any, output: Path, as_json: bool, **chosen: Any) -> None:
    """Package an engine of RUN for other programs.

    For `onnxruntime`: a folder with the engine, its preprocessing and a short script that runs it
    on images without qconvert and prints classes, boxes or shares of pixels. For `triton`: a folder
    in the model repository OUTPUT, with inputs, outputs and batching configured.
    """
    from qconvert.package.pack import write_package
    from qconvert.run.targets import load_run

    package = write_package(load_run(run), form, output, **chosen)
    console.note(*package.notes)
    if as_json:
        console.write_json({**asdict(package), "folder": str(package.folder)})
        return
    console.write(*(str(package.folder / file) for file in package.files))
    readme = package.folder / "README.md"
    console.info(f"packaged `{package.engine}`; {readme} says how to start it")
