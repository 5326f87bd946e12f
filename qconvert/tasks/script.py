"""The source of a decoder for a script that needs NumPy and nothing else."""

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from qconvert.core.errors import QConvertError
from qconvert.tasks import boxes
from qconvert.tasks.decoders import BOX_LAYOUTS, MASK_LAYOUTS
from qconvert.tasks.heads import Head
from qconvert.tasks.user_decoder import USER_LAYOUT

# What the source needs above it: the first line must be that of a file.
IMPORTS = """\
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
"""
_TYPES = """\
Floats = Integers = Indices = np.ndarray
Arrays = list[np.ndarray]
"""
_BOXES = '''\
def decode(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> list[Candidates]:
    """Return the objects of each picture, in pixels of an input of this (width, height)."""
    arrays = [np.asarray(outputs[name]) for name in {names}]
{swap}    results = []
    for objects in {layout}(arrays, size, {threshold}, **{options}):
{kept}        results.append(
            Candidates(objects.boxes[kept], objects.scores[kept], objects.classes[kept])
        )
    return results
'''
_MASKS = '''\
def decode(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> Integers:
    """Return the class of each pixel of each picture, in the resolution of the output."""
    arrays = [np.asarray(outputs[name]) for name in {names}]
    return {layout}(arrays, **{options})
'''
_SWAP = "    arrays = [array.swapaxes(1, 2) if array.ndim == 3 else array for array in arrays]\n"
_SUPPRESS = (
    "        kept = suppress(objects.boxes, objects.scores, objects.classes, {iou}, {limit})\n"
)
_FIRST = "        kept = slice({limit})\n"


def decoder_source(head: Head) -> str:
    """Return `decoder_functions` as a file of its own."""
    return f"{IMPORTS}\n{decoder_functions(head)}"


def decoder_functions(head: Head) -> str:
    """Return the source of `decode(outputs, size)`, which reads the outputs as `decode` here does.

    It holds the functions that the head needs, as they are written here, for Python 3.9 or newer.
    """
    if head.layout == USER_LAYOUT:
        raise QConvertError(
            f"the source of `{head.decoder}` is not known to need NumPy alone",
            hint="copy it into the script yourself",
        )
    layout: Callable[..., Any] | None = (BOX_LAYOUTS | MASK_LAYOUTS).get(head.layout)
    if layout is None or not _takes_options(layout, head):
        raise QConvertError(
            f"outputs cannot be read by `{head.layout}` with the options {dict(head.options)}",
            hint="score the engines again with this version: `qconvert evaluate RUN --eval PATH`",
        )
    parts = [layout] if head.layout in MASK_LAYOUTS else [layout, boxes.Candidates]
    parts += [boxes.suppress] if head.iou is not None else []
    kept = _FIRST if head.iou is None else _SUPPRESS
    values = {
        "names": head.outputs,
        "layout": head.layout,
        "options": dict(head.options),
        "threshold": head.threshold,
        "swap": _SWAP if head.swapped else "",
        "kept": kept.format(iou=head.iou, limit=head.limit),
    }
    template = _MASKS if head.layout in MASK_LAYOUTS else _BOXES
    return "\n\n".join([_TYPES, *_sources(parts), template.format_map(values)])


def _takes_options(layout: Callable[..., Any], head: Head) -> bool:
    arrays_first = [None] if head.layout in MASK_LAYOUTS else [None, None, None]
    try:
        inspect.signature(layout).bind(*arrays_first, **head.options)
    except TypeError:
        return False
    return True


def _sources(parts: list[Callable[..., Any]]) -> list[str]:
    """Return the constants, classes and functions that these use, in the order of their modules."""
    constants: dict[str, object] = {}
    functions: dict[str, Callable[..., Any]] = {}
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if functions.setdefault(part.__name__, part) is not part:
            raise ValueError(f"two functions have the name {part.__name__}")
        if not isinstance(part, types.FunctionType):
            continue
        for name in _global_names(part.__code__):
            value = part.__globals__.get(name)
            if isinstance(value, int | float | tuple):
                constants[name] = value
            elif getattr(value, "__module__", "").startswith("qconvert."):
                waiting += [value] if callable(value) and name not in functions else []
    lines = "\n".join(f"{name} = {value!r}" for name, value in sorted(constants.items()))
    ordered = sorted(functions.values(), key=_place)
    # Python 3.9 has no `strict`; what is zipped here is of equal length.
    texts = (inspect.getsource(function).replace(", strict=True", "") for function in ordered)
    return [lines, *(text.rstrip() + "\n" for text in texts)]


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _place(part: Callable[..., Any]) -> tuple[bool, str, int]:
    module = part.__module__
    return module != boxes.__name__, module, inspect.getsourcelines(part)[1]
