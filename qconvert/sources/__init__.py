"""Anything a user calls a model, as a `Source`: an ONNX or pt2 file, a factory, a named net."""

from collections.abc import Callable
from importlib import import_module

from qconvert.config import Export
from qconvert.errors import Unavailable, UsageError
from qconvert.sources.source import Source

# Loaded on use: only those that need torch import it.
KINDS = {
    "ONNX file": "qconvert.sources.onnx_file:load",
    "pt2 file": "qconvert.sources.torch_file:load_program",
    "checkpoint": "qconvert.sources.torch_file:load_pickle",
    "factory": "qconvert.sources.torch_named:load_factory",
    "timm": "qconvert.sources.torch_named:load_timm",
    "torchvision": "qconvert.sources.torch_named:load_torchvision",
}

FILES = ("ONNX file", "pt2 file", "checkpoint")

FORMS = "`m.onnx`, `net.pt2`, `package.module:factory`, `timm:NAME` or `torchvision:NAME`"

Load = Callable[[str, Export, bool], Source]


def load(source: str, export: Export, *, trust: bool = False) -> Source:
    """Return the source in ONNX form; `trust` lets a checkpoint run code while it is read."""
    module_name, _, function = KINDS[kind(source)].partition(":")
    try:
        found: Load = getattr(import_module(module_name), function)
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
    raise UsageError(f"`{source}` is not a model this tool can read", hint=f"a model is {FORMS}")
