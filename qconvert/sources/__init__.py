"""Load a model from a file, a factory function, or a model zoo."""

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import onnx_ir as ir

from qconvert.core.config import ExportConfig
from qconvert.core.errors import Unavailable, UsageError
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import RunModel, TensorSpec
from qconvert.images.preprocess import Preprocess

if TYPE_CHECKING:  # it takes half a second to import
    from qconvert.graph.clean import PassResult

MODEL_FILE = "model.onnx"

# Imported on use: only those that need torch import it.
LOADERS = {
    "ONNX file": "qconvert.sources.onnx_file:load",
    "pt2 file": "qconvert.sources.torch_models:load_program",
    "checkpoint": "qconvert.sources.torch_models:load_pickle",
    "factory": "qconvert.sources.torch_models:load_factory",
    "timm": "qconvert.sources.torch_models:load_timm",
    "torchvision": "qconvert.sources.torch_models:load_torchvision",
}

SUFFIXES = {"onnx": "ONNX file", "pt2": "pt2 file", "pt": "checkpoint", "pth": "checkpoint"}
FILE_KINDS = set(SUFFIXES.values())


@dataclass(frozen=True)
class Source:
    """A model in ONNX form, with the forward and preprocessing of the original, if it has them."""

    name: str
    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    run: RunModel | None = None
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedModel:
    """A source, its clean graph (in the cache at `path`), and the passes that cleaned it."""

    source: Source
    model: ir.Model
    path: Path
    steps: "tuple[PassResult, ...]"


def load(source: str, export: ExportConfig, *, trust: bool = False) -> Source:
    """Load a model in ONNX form; `trust` allows files that can run code while they are read."""
    try:
        loader = pkgutil.resolve_name(LOADERS[kind(source)])
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnxscript"):
            raise
        raise Unavailable(
            f"`{source}` needs {error.name}, which is not installed", hint=pip_install("torch")
        ) from None
    return cast(Source, loader(source, export, trust))


def kind(source: str) -> str:
    """Return the kind of a source from its spelling."""
    prefix, colon, name = source.partition(":")
    if prefix in ("timm", "torchvision") and name:
        return prefix
    if file_kind := SUFFIXES.get(source.rpartition(".")[2].lower()):
        return file_kind
    if colon and name.isidentifier() and all(part.isidentifier() for part in prefix.split(".")):
        return "factory"
    raise UsageError(
        f"`{source}` is not a model that qconvert can read",
        hint="a model is `m.onnx`, `net.pt2`, `package.module:factory`, `timm:NAME` or "
        "`torchvision:NAME`",
    )
