"""A model card for the variant that is shipped: what it is, how good, and how to run it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath

from qconvert.core import number_format
from qconvert.core.errors import UsageError
from qconvert.images.preprocess import Preprocess
from qconvert.report.markdown import bullets, code_block, escape_text, section
from qconvert.report.model import Report, VariantResult
from qconvert.report.tables import accuracy_table, latency_table, size_table

EXAMPLE_CODE = """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path}, providers={providers})
taken = session.get_inputs()[0]
images = np.zeros([size if isinstance(size, int) else 1 for size in taken.shape], np.float32)
answers = session.run(None, {{taken.name: images}})[0]
"""


def render_card(report: Report, name: str = "", base_model: str = "") -> str:
    """Return the card of the variant named, else of the best.

    `base_model` is the model's name on a hub; without, the front matter leaves its place open.
    """
    variant = _select_variant(report, name)
    stem = model_stem(report.model)
    parts = [
        _front_matter(report, variant, stem, base_model),
        escape_text(f"# {stem}, {variant.precision.upper()} for `{variant.backend}`"),
        " ".join(_description(report, variant)),
        *(section(each(report)) for each in (size_table, latency_table, accuracy_table)),
        "## Run it",
        _example_code(report, variant),
        "## Preprocessing",
        *_preprocessing(report),
        "## Limits",
        bullets(_limits(report, variant)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def model_stem(model: str) -> str:
    """Return the name in `net.onnx`, `runs/net.pt2`, `timm:net` and `package.module:net`."""
    name = PurePath(model)
    return name.stem if name.suffix in (".onnx", ".pt2") else model.rsplit(":", 1)[-1]


def _select_variant(report: Report, name: str) -> VariantResult:
    wanted = name or report.best
    for variant in report.variants:
        if variant.name == wanted:
            return variant
    if name:
        there = ", ".join(f"`{each.name}`" for each in report.variants)
        raise UsageError(f"the report has no variant `{name}`", hint=f"there are {there}")
    raise UsageError(
        "no variant came out best, so none is named on a card",
        hint="name the one you ship: "
        + ", ".join(f"`--engine {each.name}`" for each in report.variants),
    )


def _front_matter(report: Report, variant: VariantResult, stem: str, base_model: str) -> str:
    """Return the front matter; JSON strings are YAML strings, whatever they hold."""
    lines = [
        f"base_model: {json.dumps(base_model)}"
        if base_model
        else "# base_model: OWNER/NAME of the model this was made from",
        *(["base_model_relation: quantized"] if variant.precision != "fp32" else []),
        "library_name: onnx",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in ("onnx", variant.precision, variant.backend)),
        *_model_index(report, variant, stem),
    ]
    return "\n".join(["---", *lines, "---"])


def _model_index(report: Report, variant: VariantResult, stem: str) -> Iterator[str]:
    """Yield the `model-index` with what was measured with labels."""
    scores = variant.accuracy
    if scores is None or scores.top1 is None:
        return
    path = report.evaluation.path if report.evaluation is not None else "own images"
    yield "model-index:"
    yield f"- name: {json.dumps(f'{stem}-{variant.name}')}"
    yield "  results:"
    yield "  - task:"
    yield "      type: image-classification"
    yield "    dataset:"
    yield f"      name: {json.dumps(path)}"
    yield "      type: imagefolder"
    yield "    metrics:"
    found = {
        "accuracy": scores.top1,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
    }
    for kind, value in found.items():
        if value is not None:
            yield f"    - type: {kind}"
            yield f'      name: "{kind}, %"'
            yield f"      value: {value:.2f}"


def _description(report: Report, variant: VariantResult) -> Iterator[str]:
    yield escape_text(f"Made from `{report.model}` by {report.tool} on {report.created}.")
    if variant.candidates:
        quantized = f"{variant.quantized} of {variant.candidates}"
        yield f"{quantized} operators that could be are quantized to INT8."
    if report.calibration is not None and variant.precision in ("int8", "mixed"):
        images = number_format.count(report.calibration.count, "image")
        yield escape_text(f"Ranges were measured on {images} of `{report.calibration.path}`.")
    if report.evaluation is not None and variant.accuracy is not None:
        images = number_format.image_count(variant.accuracy.images, variant.accuracy.labelled)
        yield escape_text(f"Accuracy was measured on {images} of `{report.evaluation.path}`.")
    if report.machine:
        machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
        yield f"Machine: {escape_text(machine)}."


def _example_code(report: Report, variant: VariantResult) -> str:
    if variant.engine is None or not variant.engine.files:
        return "There is no engine to run."
    first = f"{variant.engine.path}/{variant.engine.files[0]}"
    if not first.endswith(".onnx"):
        return escape_text(
            f"`{first}` is no ONNX file: it is loaded with the runtime of its backend."
        )
    providers = list(variant.by_provider) or ["CPUExecutionProvider"]
    code = EXAMPLE_CODE.format(path=json.dumps(first), providers=json.dumps(providers))
    return code_block(code, "python")


def _preprocessing(report: Report) -> Iterator[str]:
    if not report.preprocess:
        yield "The model was given arrays as they are."
        return
    settings = Preprocess.from_dict(report.preprocess)
    yield f"{describe_preprocessing(settings)}."
    lines = (
        f"{key} = {json.dumps(value)}"
        for key, value in _preprocess_settings(report.preprocess).items()
    )
    yield code_block("\n".join(["[preprocess]", *lines]), "toml")


def describe_preprocessing(settings: Preprocess) -> str:
    """Return what is done to a picture in words."""
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
        parts.append(f"minus the mean {_number_list(settings.mean)}")
    if any(number != 1 for number in settings.std):
        parts.append(f"divided by {_number_list(settings.std)}")
    return ", ".join(parts)


def _number_list(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


# Keys of a settings file; the others follow from the model.
PREPROCESS_KEYS = ("resize", "crop", "interpolation", "mean", "std", "colours")


def _preprocess_settings(preprocess: Mapping[str, object]) -> dict[str, object]:
    found = {key: preprocess[key] for key in PREPROCESS_KEYS if key in preprocess}
    if found.get("colours") == "gray":
        del found["colours"]
    raw = {"preset": "raw"} if preprocess.get("divisor") == 1 else {}
    return {**raw, **found}


def _limits(report: Report, variant: VariantResult) -> Iterator[str]:
    if variant.accuracy is None:
        yield "no image judged its answers"
    else:
        images = number_format.image_count(variant.accuracy.images, variant.accuracy.labelled)
        yield f"accuracy was measured on {images}; others may fare differently"
    if variant.engine is not None and variant.engine.made_with:
        made = ", ".join(f"{key} {value}" for key, value in variant.engine.made_with.items())
        yield f"the engine was made with {made}"
    yield from report.notes
