"""The content of every package: an engine, its preprocessing, and how its outputs are read."""

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
from qconvert.core.run_files import HEAD_FILE
from qconvert.core.sanitize import sanitize_text
from qconvert.core.tensors import TensorSpec
from qconvert.images.listing import read_classes_file
from qconvert.images.preprocess import ImageInput, Preprocess, find_image_input, fit_to_input
from qconvert.report.markdown import describe_preprocessing, escape_text, model_stem
from qconvert.run import context, targets
from qconvert.run.heads import find_head
from qconvert.run.run_folder import RunFolder, head_text
from qconvert.run.targets import Run
from qconvert.tasks.decoders import has_object_masks
from qconvert.tasks.heads import Head
from qconvert.tasks.user_decoder import USER_LAYOUT

HOW_TO_DECODE = (
    "boxes and masks are not decoded: `qconvert evaluate RUN --eval PATH --task detect`, or "
    "`segment`, shows how"
)
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
    images. `head` says how boxes or masks are read from the outputs, if they are; `has_scores` is
    False where a row of numbers is not one of class scores. `classes` name the classes, if they are
    known, and `notes` are for the user.
    """

    name: str
    engine: Engine
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: tuple[int, int, int]
    opset: int
    preparation: tuple[Preprocess, ImageInput] | None = None
    classes: tuple[str, ...] = ()
    head: Head | None = None
    has_scores: bool = True
    notes: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """Backend and precision of the engine."""
        return f"{self.engine.backend}-{self.engine.precision}"

    @property
    def scores(self) -> TensorSpec | None:
        """The first output of shape [images, classes, 1...] that is not of integers."""
        for spec in self.outputs if self.has_scores and self.head is None else ():
            has_classes = len(spec.shape) >= 2 and spec.shape[1] != 1
            if has_classes and all(n == 1 for n in spec.shape[2:]) and spec.dtype.kind not in "iub":
                return spec
        return None

    @property
    def class_count(self) -> int | None:
        """How many classes the outputs have; 0 if they have none, None if any number may be."""
        if self.head is not None:
            return self.head.classes
        count = self.scores.shape[1] if self.scores is not None else 0
        return count if isinstance(count, int) else None


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
        image_input = find_image_input(source.inputs)
        # Scripts prepare one input; with those for sizes they take arrays.
        if not image_input.sizes:
            preparation = fit_to_input(preprocess, image_input)
    folder = RunFolder(run.folder)
    profile, opset = folder.settings().build.profile, source.model.opset_imports.get("", 0)
    outputs = onnx_io.outputs(source.model)
    bundle = Bundle(name, built, source.inputs, outputs, profile, opset, preparation)
    return with_classes(with_head(bundle, run), folder, classes)


def with_head(bundle: Bundle, run: Run) -> Bundle:
    """Add how boxes or masks are read: as the run scored them, else as its first images show."""
    if bundle.preparation is None:
        return bundle
    folder, head, reason = RunFolder(run.folder), None, HOW_TO_DECODE
    settings = folder.settings().evaluate
    tasks = [row.accuracy.task for row in run.report.variants if row.accuracy is not None]
    task = tasks[0] if tasks else settings.task
    try:
        head = folder.read_head()
        if head is None and not tasks and (task or settings.decode or bundle.scores is None):
            head = find_head(folder)
    except QConvertError as error:
        reason = f"boxes and masks are not decoded: {error}"
    if head is not None and head.layout == USER_LAYOUT:
        reason = f"boxes and masks are not decoded: copy your `{head.decoder}` into the script"
        head = None
    missing = set(head.outputs if head is not None else ()) - {spec.name for spec in bundle.outputs}
    if missing:
        raise QConvertError(
            f"`{folder.head}` reads the output `{min(missing)}`, which the engine does not have",
            hint="score the engines again: `qconvert evaluate RUN --eval PATH`",
        )
    bundle = replace(bundle, head=head, has_scores=task in (None, "classify", "any"))
    is_read = head is not None or bundle.scores is not None or task == "embed"
    return bundle if is_read else replace(bundle, notes=(reason,))


def with_classes(bundle: Bundle, folder: RunFolder, file: Path | None) -> Bundle:
    """Add the names of the classes: those of the file, else of the run if they fit."""
    if file is None and not folder.classes.is_file():
        return bundle
    names = tuple(map(sanitize_text, read_classes_file(file or folder.classes).names))
    if bundle.class_count in (len(names), None):
        return replace(bundle, classes=names)
    if file is not None:
        raise UsageError(
            f"`{file}` names {len(names)} classes, but the model has {bundle.class_count}",
            hint="write one name per line, in the model's order",
        )
    return bundle


def preprocess_values(preprocess: Preprocess, image_input: ImageInput) -> dict[str, Any]:
    """Return what decides how an image becomes the input, as plain values."""
    values = {
        "input": image_input.name,
        "type": image_input.dtype.name,
        "layout": image_input.layout,
        "width": image_input.width,
        "height": image_input.height,
        **preprocess.to_dict(),
    }
    values.pop("crop-share", None)
    return values


def write_preprocess_file(preprocess: Preprocess, image_input: ImageInput, folder: Path) -> None:
    """Write the preprocessing as TOML."""
    values = preprocess_values(preprocess, image_input)
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
    """Write the README, and what is known of classes, preprocessing and outputs."""
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
    if bundle.head is not None:
        (folder / HEAD_FILE).write_text(head_text(bundle.head), encoding="utf-8")
        head_line = sanitize_text(f"`{bundle.head.decoder}`: {bundle.head.text}")
        sentence = f"Its outputs are read by {head_line} (`{HEAD_FILE}`)."
        if has_object_masks(bundle.head):
            sentence += " The script reads boxes alone, without the masks of the objects."
        parts.append(escape_text(sentence) + "\n")
    notes = (*bundle.notes, *notes)
    parts += [escape_text(f"{note[:1].upper()}{note[1:]}.") + "\n" for note in notes]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def fill_template(file: str, **values: Any) -> str:
    """Return a template of this package with its placeholders replaced."""
    path = Path(__file__).with_name("templates") / file
    return Template(path.read_text(encoding="utf-8")).substitute(values)
