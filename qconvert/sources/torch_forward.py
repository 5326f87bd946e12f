"""A network's own forward as a `Run`: arrays in, arrays out, and its troubles told."""

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import Tensors
from qconvert.sources.factory import user_line

# Names that say nothing; a single input or output of such a name is called what it is.
NAMELESS = {"x", "input", "inputs", "inp", "img", "args", "args_0", "input_", "X"}

# What PyTorch says where the inputs, not the code, are wrong.
SHAPES = re.compile(
    r"shape|size|dimension|channel|mat1|input|positional argument|broadcast|batch|index", re.I
)


@dataclass(frozen=True)
class Forward:
    """A callable network with the names of what goes in (in order) and comes out."""

    call: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, feeds: Tensors) -> Tensors:
        """Run the network on arrays."""
        arguments = [torch.from_numpy(np.array(feeds[name], order="C")) for name in self.inputs]
        answer = tensors_of(run_network("the network", self.call, arguments))
        if len(answer) != len(self.outputs):
            raise QConvertError(
                f"the network returns {len(answer)} tensors here, and {len(self.outputs)} before",
                hint="how many outputs there are may not depend on the input",
            )
        return {name: _array(value) for name, (_, value) in zip(self.outputs, answer, strict=True)}


def run_network(name: str, network: Callable[..., Any], arguments: Sequence[torch.Tensor]) -> Any:
    """Run the user's network; what it prints is talk, and stdout is for results."""
    try:
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            return network(*arguments)
    except (Exception, SystemExit) as error:
        raise _failed(name, arguments, error) from None


def output_names(answer: Any) -> tuple[str, ...]:
    """Return the ONNX names of the outputs, from the keys and fields the network answers with."""
    found = [_path_name(path) for path, _ in tensors_of(answer)]
    if not found:
        raise QConvertError("the network returns no tensor", hint="return a tensor, tuple or dict")
    return descriptive_names(
        [name or f"output_{number}" for number, name in enumerate(found)], "output"
    )


def unique_output_names(outputs: Sequence[str], inputs: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs' names, with an ending where ONNX has that name already."""
    taken = set(inputs)
    found = []
    for name in outputs:
        free, number = name, 0
        while free in taken or (free != name and free in outputs):
            number += 1
            free = f"{name}_out" if number == 1 else f"{name}_out_{number}"
        taken.add(free)
        found.append(free)
    return tuple(found)


def rename_notes(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Say which outputs got another name, and why."""
    return tuple(
        f"output `{old}` is called `{new}`: ONNX has one tensor of a name"
        for old, new in zip(before, after, strict=True)
        if old != new
    )


def tensors_of(answer: Any) -> list[tuple[tuple[Any, ...], torch.Tensor]]:
    """Return the tensors in an answer of any structure, each with the path to it."""
    found, _ = pytree.tree_flatten_with_path(answer)
    return [(path, value) for path, value in found if isinstance(value, torch.Tensor)]


def descriptive_names(names: Sequence[str], single: str) -> tuple[str, ...]:
    """Return the names; a lone one that says nothing is called `single`."""
    if len(names) == 1 and (names[0] in NAMELESS or names[0].startswith("output_")):
        return (single,)
    return tuple(names)


def _failed(name: str, arguments: Sequence[torch.Tensor], error: BaseException) -> QConvertError:
    shapes = ", ".join("x".join(map(str, each.shape)) or "scalar" for each in arguments)
    if isinstance(error, Exception) and SHAPES.search(str(error)):
        return UsageError(
            f"{name} does not run on inputs of shape {shapes}: {first_line(error)}",
            details=user_line(error),
            hint="say the shapes with `--input NAME:1x3x224x224`, once for every input",
        )
    return QConvertError(
        f"{name} raised {type(error).__name__} in its forward: {first_line(error)}",
        details=user_line(error),
        hint=f"run it in Python on inputs of shape {shapes} to see it there",
    )


def _array(value: torch.Tensor) -> Any:
    """Return an array; NumPy has no bfloat16, and float32 holds every one of its numbers."""
    value = value.detach().cpu().resolve_conj().resolve_neg()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path
    ]
    return "" if all(part.isdigit() for part in parts) else "_".join(parts)
