"""What goes into every package: an engine, what it is fed, and what its classes are called."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert import onnx_io, sources
from qconvert.backends.base import Engine
from qconvert.config import Config, Export
from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import TensorSpec
from qconvert.images.classes import classes_in
from qconvert.images.preprocess import Preprocess, fit
from qconvert.images.target import Target, picture_input
from qconvert.pipeline import engines, pictures
from qconvert.pipeline.finished import Run
from qconvert.pipeline.run_folder import RunFolder
from qconvert.plain import plain
from qconvert.report.card import stem_of

NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Pictures:
    """How a picture becomes the input, every size and value settled."""

    preprocess: Preprocess
    target: Target


@dataclass(frozen=True)
class Shipment:
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
    pictures: Pictures | None = None
    classes: tuple[str, ...] = ()

    @property
    def scores(self) -> TensorSpec | None:
        """The output with a score for each class, if there is one."""
        return scores_of(self.outputs)


def gather(run: Run, engine: str = "", name: str = "", classes: Path | None = None) -> Shipment:
    """Return what to pack of a run: the engine named, else that of the verdict."""
    chosen = engines.read(run.path(engine)).engine
    source = sources.load(str(chosen.folder / chosen.graph), Export())
    folder = RunFolder(run.folder)
    outputs = onnx_io.outputs(source.model)
    return Shipment(
        name=_named(name or re.sub(r"[^\w.-]+", "-", stem_of(run.report.model))),
        engine=chosen,
        inputs=source.inputs,
        outputs=outputs,
        profile=folder.settings().build.profile,
        opset=source.model.opset_imports.get("", 0),
        pictures=_pictures(source.inputs, pictures.preprocessing_or_usual(source, Config())),
        classes=_classes(scores_of(outputs), folder, classes),
    )


def _named(name: str) -> str:
    if not NAME.fullmatch(name) or not name.strip("."):
        raise UsageError(
            f"`{name}` cannot be the name of a folder and of a model",
            hint="letters, digits, `-`, `_` and `.`: `--name NAME`",
        )
    return name


def _pictures(inputs: Sequence[TensorSpec], known: Preprocess) -> Pictures | None:
    try:
        return Pictures(*fit(known, picture_input(inputs)))
    except QConvertError:
        return None


def _classes(scores: TensorSpec | None, run: RunFolder, given: Path | None) -> tuple[str, ...]:
    """Return the names given, or those that the run knows, where there is one for each score."""
    file = given or run.classes
    known = classes_in(file).names if given is not None or file.is_file() else ()
    names = tuple(plain(name) for name in known)
    wanted = scores.shape[1] if scores is not None else 0
    if len(names) == wanted or isinstance(wanted, str):
        return names
    if given is not None:
        raise UsageError(
            f"`{given}` names {len(names)} classes, the model has {wanted}",
            hint="one name a line, in the model's order",
        )
    return ()


def scores_of(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the first output with a score for each class, if there is one."""
    return next((spec for spec in outputs if _is_scores(spec)), None)


def _is_scores(spec: TensorSpec) -> bool:
    """Whether an output is [images, classes], if need be with ones behind, and not of integers."""
    rows = len(spec.shape) >= 2 and spec.shape[1] != 1 and all(n == 1 for n in spec.shape[2:])
    return rows and spec.dtype.kind not in "iub"
