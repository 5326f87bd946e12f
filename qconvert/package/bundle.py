"""What goes into every package: an engine, what it is fed, and what its classes are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert import sources
from qconvert.backends.base import Engine
from qconvert.core import config_file, onnx_io
from qconvert.core.config import ExportConfig, PreprocessConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.sanitize import sanitize_text
from qconvert.core.tensors import TensorSpec
from qconvert.images.listing import read_classes_file
from qconvert.images.preprocess import ImageInput, Preprocess, find_image_input, fit_to_input
from qconvert.report.markdown import escape_text
from qconvert.report.model_card import describe_preprocessing, model_stem
from qconvert.run import built_engines, job_images
from qconvert.run.finished_run import Run
from qconvert.run.run_folder import RunFolder

NAME_PATTERN = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class ImagePreparation:
    """How a picture becomes the input, every size and value settled."""

    preprocess: Preprocess
    target: ImageInput


@dataclass(frozen=True)
class Bundle:
    """An engine that is packed as `name`.

    `pictures` is None for inputs that are no pictures. `classes` are the names of those of
    `scores`, the output with a score for each class, where there is one and they are known.
    `profile` are the batch sizes that the run was made for: the least, the best, the most.
    """

    name: str
    engine: Engine
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: tuple[int, int, int]
    opset: int
    preparation: ImagePreparation | None = None
    classes: tuple[str, ...] = ()

    @property
    def scores(self) -> TensorSpec | None:
        """The output with a score for each class, if there is one."""
        return find_scores(self.outputs)


def make_bundle(run: Run, engine: str = "", name: str = "", classes: Path | None = None) -> Bundle:
    """Return what to pack of a run: the engine named, else that of the verdict."""
    chosen = built_engines.read_engine(run.path(engine)).engine
    source = sources.load(str(chosen.folder / chosen.graph), ExportConfig())
    folder = RunFolder(run.folder)
    outputs = onnx_io.outputs(source.model)
    return Bundle(
        name=_require_name(name or re.sub(r"[^\w.-]+", "-", model_stem(run.report.model))),
        engine=chosen,
        inputs=source.inputs,
        outputs=outputs,
        profile=folder.settings().build.profile,
        opset=source.model.opset_imports.get("", 0),
        preparation=_image_preparation(
            source.inputs, job_images.preprocessing_or_default(source, PreprocessConfig())
        ),
        classes=_class_names(find_scores(outputs), folder, classes),
    )


def _require_name(name: str) -> str:
    if not NAME_PATTERN.fullmatch(name) or not name.strip("."):
        raise UsageError(
            f"`{name}` cannot be the name of a folder and of a model",
            hint="letters, digits, `-`, `_` and `.`: `--name NAME`",
        )
    return name


def _image_preparation(inputs: Sequence[TensorSpec], known: Preprocess) -> ImagePreparation | None:
    try:
        return ImagePreparation(*fit_to_input(known, find_image_input(inputs)))
    except QConvertError:
        return None


def _class_names(scores: TensorSpec | None, run: RunFolder, given: Path | None) -> tuple[str, ...]:
    """Return the names given, or those that the run knows, where there is one for each score."""
    file = given or run.classes
    known = read_classes_file(file).names if given is not None or file.is_file() else ()
    names = tuple(sanitize_text(name) for name in known)
    wanted = scores.shape[1] if scores is not None else 0
    if len(names) == wanted or isinstance(wanted, str):
        return names
    if given is not None:
        raise UsageError(
            f"`{given}` names {len(names)} classes, the model has {wanted}",
            hint="one name a line, in the model's order",
        )
    return ()


def find_scores(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the first output with a score for each class, if there is one."""
    return next((spec for spec in outputs if _is_scores(spec)), None)


def _is_scores(spec: TensorSpec) -> bool:
    """Whether an output is [images, classes], if need be with ones behind, and not of integers."""
    rows = len(spec.shape) >= 2 and spec.shape[1] != 1 and all(n == 1 for n in spec.shape[2:])
    return rows and spec.dtype.kind not in "iub"


PREPROCESS_FILE = "preprocess.toml"
PREPROCESS_HEADER = """\
# What is done to a picture before the model sees it, in this order: turned upright as its EXIF
# says, made 8 bits a channel in `colours`, resized, cut from the centre to `width` and `height`,
# divided by `divisor`, minus `mean`, divided by `std`. `resize` is the shorter side, or [width,
# height]; the filter is antialiased.
"""


def write_preprocess_file(shipment: Bundle, folder: Path) -> None:
    """Write the file."""
    assert shipment.preparation is not None
    done, target = shipment.preparation.preprocess.to_dict(), shipment.preparation.target
    told = {
        "input": target.name,
        "type": target.dtype.name,
        "layout": target.layout,
        "width": target.width,
        "height": target.height,
        **{key: value for key, value in done.items() if key != "crop-share"},
    }
    lines = "".join(f"{key} = {config_file.toml_value(value)}\n" for key, value in told.items())
    (folder / PREPROCESS_FILE).write_text(PREPROCESS_HEADER + lines, encoding="utf-8")


def describe_preparation(pictures: ImagePreparation) -> str:
    """Return it in a sentence."""
    words = describe_preprocessing(pictures.preprocess)
    layout = pictures.target.layout.upper()
    return (
        escape_text(
            f"Pictures become `{pictures.target.name}` thus: {words}, {layout} "
            f"(`{PREPROCESS_FILE}`)."
        )
        + "\n"
    )
