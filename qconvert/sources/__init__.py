"""Anything a user calls a model, as a `Source`: an ONNX or pt2 file, a factory, a named net."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import onnx_ir as ir

from qconvert.core.config import ExportConfig
from qconvert.core.errors import Unavailable, UsageError
from qconvert.core.tensors import RunModel, TensorSpec
from qconvert.graph import clean
from qconvert.images.preprocess import Preprocess

MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class Source:
    """A model in ONNX form; `run` is the original's forward, None if the original is ONNX.

    `preprocess` is what the source itself says is done to a picture, None where it says nothing.
    """

    name: str
    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    run: RunModel | None = None
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()


# Loaded on use: only those that need torch import it.
LOADERS = {
    "ONNX file": "qconvert.sources.onnx_file:load",
    "pt2 file": "qconvert.sources.torch_file:load_program",
    "checkpoint": "qconvert.sources.torch_file:load_pickle",
    "factory": "qconvert.sources.torch_models:load_factory",
    "timm": "qconvert.sources.torch_models:load_timm",
    "torchvision": "qconvert.sources.torch_models:load_torchvision",
}

FILE_KINDS = ("ONNX file", "pt2 file", "checkpoint")

MODEL_FORMS = "`m.onnx`, `net.pt2`, `package.module:factory`, `timm:NAME` or `torchvision:NAME`"

Loader = Callable[[str, ExportConfig, bool], Source]


def load(source: str, export: ExportConfig, *, trust: bool = False) -> Source:
    """Return the source in ONNX form; `trust` lets a checkpoint run code while it is read."""
    module_name, _, function = LOADERS[kind(source)].partition(":")
    try:
        found: Loader = getattr(import_module(module_name), function)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnxscript"):
            raise
        raise Unavailable(
            f"`{source}` needs {error.name}, which is not installed",
            hint='pip install "qconvert[torch]"',
        ) from None
    return found(source, export, trust)


def kind(source: str) -> str:
    """Say what a source is from how it is written."""
    prefix, colon, rest = source.partition(":")
    if prefix in ("timm", "torchvision") and rest:
        return prefix
    suffix = source.rpartition(".")[2].lower()
    by_suffix = {"onnx": "ONNX file", "pt2": "pt2 file", "pt": "checkpoint", "pth": "checkpoint"}
    if suffix in by_suffix:
        return by_suffix[suffix]
    if colon and rest.isidentifier() and all(part.isidentifier() for part in prefix.split(".")):
        return "factory"
    raise UsageError(
        f"`{source}` is not a model this tool can read", hint=f"a model is {MODEL_FORMS}"
    )


@dataclass(frozen=True)
class LoadedModel:
    """A source, its clean graph (in the store at `path`), and what cleaned it."""

    source: Source
    model: ir.Model
    path: Path
    steps: tuple[clean.PassResult, ...]
