"""The content of every package: an engine, its preprocessing, and its class names."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from qconvert import sources
from qconvert.backends.base import Engine
from qconvert.core import config_file, onnx_io
from qconvert.core.config import ExportConfig, PreprocessConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.sanitize import sanitize_text
from qconvert.core.tensors import TensorSpec
from qconvert.images.listing import read_classes_file
from qconvert.images.preprocess import ImageInput, Preprocess, find_image_input, fit_to_input
from qconvert.report.markdown import describe_preprocessing, escape_text, model_stem
from qconvert.run import context, targets
from qconvert.run.run_folder import RunFolder
from qconvert.run.targets import Run

PREPROCESS_FILE = "preprocess.toml"
PREPROCESS_HEADER = """\
# How an image becomes the model's input, in this order: turned upright as its EXIF says, converted
# to 8 bits a channel in `colours`, resized, cropped at the centre to `width` and `height`, divided
# by `divisor`, minus `mean`, divided by `std`. `resize` is the shorter side, [width, height], or a
# letterbox: all of the image, in the middle of gray 114. The filter is antialiased.
"""


@dataclass(frozen=True)
class Bundle:
    """An engine to package as `name`.

    `profile` holds the minimum, best and maximum batch size of the run. `preparation` says how an
    image becomes the input, with every size and value resolved; it is None if the inputs are not
    images. `classes` name the columns of `scores`, if they are known.
    """

    name: str
    engine: Engine
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: tuple[int, int, int]
    opset: int
    preparation: tuple[Preprocess, ImageInput] | None = None
    classes: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """Backend and precision of the engine."""
        return f"{self.engine.backend}-{self.engine.precision}"

    @property
    def scores(self) -> TensorSpec | None:
        """The first output of shape [images, classes, 1...] that is not of integers."""
        for spec in self.outputs:
            has_classes = len(spec.shape) >= 2 and spec.shape[1] != 1
            if has_classes and all(n == 1 for n in spec.shape[2:]) and spec.dtype.kind not in "iub":
                return spec
        return None


def make_bundle(run: Run, engine: str = "", name: str = "", classes: Path | None = None) -> Bundle:
    """Collect what to package of a run: the named engine, or else that of the verdict."""
    built = targets.read_engine(run.path(engine))
    source = sources.load(str(built.folder / built.graph), ExportConfig())
    name = name or re.sub(r"[^\w.-]+", "-", model_stem(run.report.model))
    if not re.fullmatch(r"[\w.-]+", name) or not name.strip("."):
        raise UsageError(
            f"`{name}` is not a valid name for a folder and a model",
            hint="use letters, digits, `-`, `_` and `.`: `--name NAME`",
        )
    preprocess = context.preprocessing_or_default(source, PreprocessConfig())
    preparation = None
    with contextlib.suppress(QConvertError):  # the inputs are not images
        preparation = fit_to_input(preprocess, find_image_input(source.inputs))
    folder = RunFolder(run.folder)
    profile, opset = folder.settings().build.profile, source.model.opset_imports.get("", 0)
    outputs = onnx_io.outputs(source.model)
    bundle = Bundle(name, built, source.inputs, outputs, profile, opset, preparation)
    if classes is None and not folder.classes.is_file():
        return bundle
    names = tuple(map(sanitize_text, read_classes_file(classes or folder.classes).names))
    count = bundle.scores.shape[1] if bundle.scores is not None else 0
    if len(names) == count or isinstance(count, str):
        return replace(bundle, classes=names)
    if classes is not None:
        raise UsageError(
            f"`{classes}` names {len(names)} classes, but the model has {count}",
            hint="write one name per line, in the model's order",
        )
    return bundle


def write_preprocess_file(preprocess: Preprocess, image_input: ImageInput, folder: Path) -> None:
    """Write the preprocessing as TOML."""
    values = {
        "input": image_input.name,
        "type": image_input.dtype.name,
        "layout": image_input.layout,
        "width": image_input.width,
        "height": image_input.height,
        **preprocess.to_dict(),
    }
    values.pop("crop-share", None)
    lines = "".join(f"{key} = {config_file.toml_value(value)}\n" for key, value in values.items())
    (folder / PREPROCESS_FILE).write_text(PREPROCESS_HEADER + lines, encoding="utf-8")


def write_documents(
    bundle: Bundle,
    folder: Path,
    template: str,
    class_file: str,
    notes: Sequence[str] = (),
    **values: str,
) -> None:
    """Write the README, and if they are known, the names of the classes and the preprocessing."""
    parts = [fill_template(template, name=bundle.name, engine=bundle.variant, **values)]
    if bundle.classes:
        lines = "".join(f"{name}\n" for name in bundle.classes)
        (folder / class_file).write_text(lines, encoding="utf-8")
    if bundle.preparation is not None:
        preprocess, image_input = bundle.preparation
        write_preprocess_file(preprocess, image_input, folder)
        steps = f"{describe_preprocessing(preprocess)}, {image_input.layout.upper()}"
        sentence = f"Images become `{image_input.name}`: {steps} (`{PREPROCESS_FILE}`)."
        parts.append(escape_text(sentence) + "\n")
    parts += [escape_text(f"{note[:1].upper()}{note[1:]}.") + "\n" for note in notes]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def fill_template(file: str, **values: Any) -> str:
    """Return a template of this package with its placeholders replaced."""
    path = Path(__file__).with_name("templates") / file
    return Template(path.read_text(encoding="utf-8")).substitute(values)
