"""The report as Markdown: for pull requests, and as the model card of the engine that ships."""

import json
import re
from collections.abc import Iterable
from pathlib import PurePath

from qconvert.core import number_format as fmt
from qconvert.core.errors import UsageError
from qconvert.core.formats import format_title, needs_ranges
from qconvert.core.sanitize import sanitize_text
from qconvert.images.preprocess import Preprocess
from qconvert.measure.accuracy import Accuracy
from qconvert.report import search_tables, tables
from qconvert.report.chain import chain_table
from qconvert.report.model import Report, VariantResult
from qconvert.report.table import TextTable

EXAMPLE_CODE = """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path}, providers={providers})
model_input = session.get_inputs()[0]
images = np.zeros([n if isinstance(n, int) else 1 for n in model_input.shape], np.float32)
outputs = session.run(None, {{model_input.name: images}})[0]
"""

MODEL_INDEX = """\
model-index:
- name: {name}
  results:
  - task:
      type: {task}
    dataset:
      name: {dataset}
      type: imagefolder
    metrics:"""
METRIC = """\
    - type: {metric}
      name: "{metric}, %"
      value: {value:.2f}"""

CARD_TASKS = {
    "classify": "image-classification",
    "detect": "object-detection",
    "segment": "image-segmentation",
    "embed": "image-feature-extraction",
}

# Keys of a settings file; the other preprocessing follows from the model.
PREPROCESS_KEYS = ("resize", "crop", "interpolation", "mean", "std", "colours")


def render_markdown(report: Report) -> str:
    """Return the whole report: verdict, gates, tables, notes, and how to repeat the run."""
    optional = [tables.placement_table(report), tables.unquantized_table(report)]
    engines = tables.engine_table(report)
    facts = [_row(map(escape_cell, fact)) for fact in tables.provenance(report).items()]
    parts = [
        f"# {escape_text(report.model)}",
        f"**{escape_text(report.verdict)}.**" if report.verdict else "",
        section(tables.gate_table(report)) if report.gates else "",
        section(tables.size_table(report)),
        section(tables.latency_table(report)),
        section(gpu) if (gpu := tables.gpu_table(report)).rows else "",
        section(chain) if (chain := chain_table(report)).rows else "",
        section(tables.accuracy_table(report)),
        f"## Notes\n\n{bullets(report.notes)}" if report.notes else "",
        *(section(table) for table in search_tables.search_tables(report)),
        *(section(table) for table in optional if table.rows),
        "## How it was made",
        code_block(report.command, "sh"),
        "\n".join(["| | |", "| --- | --- |", *facts]),
        table_markdown(engines) if engines.rows else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(table: TextTable) -> str:
    """Return a table under its title, with its footnotes below."""
    return f"## {escape_text(table.title)}\n\n{table_markdown(table)}"


def table_markdown(table: TextTable) -> str:
    """Return a table and its footnotes."""
    lines = [
        _row(column.title for column in table.columns),
        _row("---:" if column.justify == "right" else "---" for column in table.columns),
        *(_row(map(escape_cell, row)) for row in table.rows),
    ]
    footnotes = "  \n".join(map(escape_text, table.footnotes))
    return "\n".join(lines) + (f"\n\n{footnotes}" if footnotes else "")


def bullets(sentences: Iterable[str]) -> str:
    """Return a list of sentences, each with a capital and a full stop."""
    return "\n".join(
        f"- {escape_text(sentence[:1].upper() + sentence[1:]).removesuffix('.')}."
        for sentence in sentences
    )


def code_block(code: str, language: str = "") -> str:
    """Return a block of code behind a fence that nothing inside can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{sanitize_text(code.strip())}\n{fence}"


def escape_cell(text: str) -> str:
    """Escape what would end a cell, in code too; no backslash there may undo that."""
    parts = text.split("`")
    parts[1::2] = [code.replace("\\|", "\\ |") for code in parts[1::2]]
    return escape_text("`".join(parts)).replace("|", "\\|")


def escape_text(text: str) -> str:
    """Escape what Markdown and HTML would act on, except in code between backticks.

    Several backticks in a row, which only a hostile name has, would pair up with others like them.
    """
    single = re.sub("`{2,}", lambda run: "'" * len(run[0]), sanitize_text(" ".join(text.split())))
    parts = single.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*_<\[\]`])", r"\\\1", single)
    parts[::2] = (re.sub(r"([\\*_<\[\]])", r"\\\1", text) for text in parts[::2])
    return "`".join(parts)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def render_card(report: Report, name: str = "") -> str:
    """Return the card of the named variant, else of the best."""
    variants = {variant.name: variant for variant in report.variants}
    variant = variants.get(name or report.best)
    if variant is None and name:
        raise UsageError(
            f"the report has no variant `{name}`",
            hint=f"it has {', '.join(f'`{other}`' for other in variants)}",
        )
    if variant is None:
        options = ", ".join(f"`--engine {other}`" for other in variants)
        raise UsageError(
            "the report names no best variant for the card",
            hint=f"name the engine that you ship: {options}",
        )
    sentences = [f"Made from `{report.model}` by {report.tool} on {report.created}."]
    if variant.candidates:
        sentences.append(
            f"{variant.quantized} of {variant.candidates} operators that could be are quantized "
            f"to {format_title(variant.precision)}."
        )
    if report.calibration is not None and needs_ranges(variant.precision):
        images = fmt.count(report.calibration.count, "image")
        sentences.append(f"Ranges were measured on {images} of `{report.calibration.path}`.")
    stem, limits = model_stem(report.model), ["its accuracy was not measured"]
    if variant.accuracy is not None:
        images = fmt.image_count(variant.accuracy.images, variant.accuracy.labelled)
        limits = [f"accuracy was measured on {images}; it may differ on other images"]
        if report.evaluation is not None:
            sentences.append(f"Accuracy was measured on {images} of `{report.evaluation.path}`.")
    if report.machine:
        machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
        sentences.append(f"Machine: {machine}.")
    if variant.engine is not None and variant.engine.made_with:
        versions = ", ".join(f"{key} {value}" for key, value in variant.engine.made_with.items())
        limits.append(f"the engine was built with {versions}")
    parts = [
        _front_matter(report, variant, stem),
        escape_text(f"# {stem}, {variant.precision.upper()} for `{variant.backend}`"),
        " ".join(map(escape_text, sentences)),
        section(tables.size_table(report)),
        section(tables.latency_table(report)),
        section(tables.accuracy_table(report)),
        "## Run it",
        _example_code(variant),
        "## Preprocessing",
        _preprocessing(report),
        "## Limits",
        bullets([*limits, *report.notes]),
    ]
    return "\n\n".join(parts) + "\n"


def model_stem(model: str) -> str:
    """Return the name in `net.onnx`, `runs/net.pt2`, `timm:net` and `package.module:net`."""
    path = PurePath(model)
    return path.stem if path.suffix in (".onnx", ".pt2") else model.rsplit(":", 1)[-1]


def describe_preprocessing(settings: Preprocess) -> str:
    """Return the preprocessing of an image in words."""
    filtered = f"with an antialiased {settings.interpolation} filter"
    parts = [{"rgb": "RGB", "bgr": "BGR", "gray": "Gray"}[settings.colours]]
    if isinstance(settings.resize, int):
        parts.append(f"the shorter side resized to {settings.resize} {filtered}")
    elif settings.exact_size is not None:
        width, height = settings.exact_size
        fitted = f"fitted into a gray letterbox of {width}×{height}"
        parts.append(
            f"{fitted if settings.letterbox else f'resized to {width}×{height}'} {filtered}"
        )
    if isinstance(settings.crop, int):
        parts.append(f"{settings.crop}×{settings.crop} cut from the centre")
    if settings.divisor != 1:
        parts.append(f"divided by {settings.divisor:g}")
    if any(settings.mean):
        parts.append(f"minus the mean {', '.join(f'{mean:g}' for mean in settings.mean)}")
    if any(std != 1 for std in settings.std):
        parts.append(f"divided by {', '.join(f'{std:g}' for std in settings.std)}")
    return ", ".join(parts)


def _front_matter(report: Report, variant: VariantResult, stem: str) -> str:
    """Return the YAML front matter; its strings are JSON strings, which need no other escaping."""
    lines = ["---", "# base_model: OWNER/NAME of the original model"]
    if variant.precision != "fp32":
        lines.append("base_model_relation: quantized")
    tags = (f"- {json.dumps(tag)}" for tag in ("onnx", variant.precision, variant.backend))
    lines += ["library_name: onnx", "tags:", *tags]
    accuracy = variant.accuracy
    if accuracy is not None and (values := _card_metrics(accuracy)):
        name = json.dumps(f"{stem}-{variant.name}")
        dataset = json.dumps(report.evaluation.path if report.evaluation else "own images")
        task = CARD_TASKS.get(accuracy.task, "other")
        lines.append(MODEL_INDEX.format(name=name, dataset=dataset, task=task))
        lines += (METRIC.format(metric=metric, value=value) for metric, value in values.items())
    return "\n".join([*lines, "---"])


def _card_metrics(accuracy: Accuracy) -> dict[str, float]:
    """Return the metrics of a model card in percent; none where nothing says what is right."""
    if accuracy.task == "classify":
        names = {"accuracy": "top1", "precision": "precision", "recall": "recall", "f1": "f1"}
        values = {metric: getattr(accuracy, name) for metric, name in names.items()}
        return {metric: value for metric, value in values.items() if value is not None}
    return {name: 100 * value for name, value in accuracy.metrics.items()}


def _example_code(variant: VariantResult) -> str:
    if variant.engine is None or not variant.engine.files:
        return "There is no engine to run."
    path = f"{variant.engine.path}/{variant.engine.files[0]}"
    if not path.endswith(".onnx"):
        return escape_text(
            f"`{path}` is not an ONNX file: load it with the runtime of its backend."
        )
    providers = list(variant.by_provider) or ["CPUExecutionProvider"]
    code = EXAMPLE_CODE.format(path=json.dumps(path), providers=json.dumps(providers))
    return code_block(code, "python")


def _preprocessing(report: Report) -> str:
    """Return the preprocessing in words, and as the section of a settings file."""
    preprocess = report.preprocess
    if not preprocess:
        return "The model takes arrays without preprocessing."
    settings = {key: preprocess[key] for key in PREPROCESS_KEYS if key in preprocess}
    if settings.get("colours") == "gray":
        del settings["colours"]
    if preprocess.get("divisor") == 1:
        settings = {"preset": "raw", **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    words = describe_preprocessing(Preprocess.from_dict(preprocess))
    return f"{words}.\n\n" + code_block("\n".join(["[preprocess]", *lines]), "toml")
