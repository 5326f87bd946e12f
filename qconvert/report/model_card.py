"""A model card for the variant that ships: description, accuracy, and how to run it."""

import json
from pathlib import PurePath

from qconvert.core import number_format as fmt
from qconvert.core.errors import UsageError
from qconvert.images.preprocess import Preprocess
from qconvert.report import tables
from qconvert.report.markdown import bullets, code_block, escape_text, section
from qconvert.report.model import Report, VariantResult

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
      type: image-classification
    dataset:
      name: {dataset}
      type: imagefolder
    metrics:"""
METRIC = """\
    - type: {metric}
      name: "{metric}, %"
      value: {value:.2f}"""

# Keys of a settings file; the other preprocessing follows from the model.
PREPROCESS_KEYS = ("resize", "crop", "interpolation", "mean", "std", "colours")


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
    stem, limits = model_stem(report.model), ["its accuracy was not measured"]
    if variant.accuracy is not None:
        images = fmt.image_count(variant.accuracy.images, variant.accuracy.labelled)
        limits = [f"accuracy was measured on {images}; it may differ on other images"]
    if variant.engine is not None and variant.engine.made_with:
        versions = ", ".join(f"{key} {value}" for key, value in variant.engine.made_with.items())
        limits.append(f"the engine was built with {versions}")
    parts = [
        _front_matter(report, variant, stem),
        escape_text(f"# {stem}, {variant.precision.upper()} for `{variant.backend}`"),
        _description(report, variant),
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
    elif isinstance(settings.resize, tuple):
        width, height = settings.resize
        parts.append(f"resized to {width}×{height} {filtered}")
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
    if accuracy is not None and accuracy.top1 is not None:
        name = json.dumps(f"{stem}-{variant.name}")
        dataset = json.dumps(report.evaluation.path if report.evaluation else "own images")
        lines.append(MODEL_INDEX.format(name=name, dataset=dataset))
        for metric in ("accuracy", "precision", "recall", "f1"):
            value = getattr(accuracy, "top1" if metric == "accuracy" else metric)
            if value is not None:
                lines.append(METRIC.format(metric=metric, value=value))
    return "\n".join([*lines, "---"])


def _description(report: Report, variant: VariantResult) -> str:
    sentences = [f"Made from `{report.model}` by {report.tool} on {report.created}."]
    if variant.candidates:
        sentences.append(
            f"{variant.quantized} of {variant.candidates} operators that could be are quantized "
            "to INT8."
        )
    if report.calibration is not None and variant.precision in ("int8", "mixed"):
        images = fmt.count(report.calibration.count, "image")
        sentences.append(f"Ranges were measured on {images} of `{report.calibration.path}`.")
    if report.evaluation is not None and variant.accuracy is not None:
        images = fmt.image_count(variant.accuracy.images, variant.accuracy.labelled)
        sentences.append(f"Accuracy was measured on {images} of `{report.evaluation.path}`.")
    if report.machine:
        machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
        sentences.append(f"Machine: {machine}.")
    return " ".join(map(escape_text, sentences))


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
