"""Run a network's own forward on arrays, and name its inputs and outputs."""

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

# Names without a meaning; a single input or output of such a name is called `input` or `output`.
MEANINGLESS = {"x", "input", "inputs", "inp", "img", "args", "args_0", "input_", "X"}

# Words of PyTorch's errors about the shapes of inputs.
SHAPES = re.compile(
    r"shape|size|dimension|channel|mat1|input|positional argument|broadcast|batch|index", re.I
)


@dataclass(frozen=True)
class Forward:
    """A callable network, with the names of its inputs, in order, and of its outputs."""

    call: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, feeds: Tensors) -> Tensors:
        """Run the network on arrays."""
        arguments = [torch.from_numpy(np.array(feeds[name], order="C")) for name in self.inputs]
        tensors = tensors_of(run_network("the network", self.call, arguments))
        if len(tensors) != len(self.outputs):
            raise QConvertError(
                f"the network returns {len(tensors)} tensors, and returned {len(self.outputs)} "
                "when it was exported",
                hint="the number of outputs must not depend on the input",
            )
        return {
            name: _to_array(tensor) for name, (_, tensor) in zip(self.outputs, tensors, strict=True)
        }


def run_network(name: str, network: Callable[..., Any], arguments: Sequence[torch.Tensor]) -> Any:
    """Run the user's network; what it prints goes to stderr."""
    try:
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            return network(*arguments)
    except (Exception, SystemExit) as error:
        raise _forward_error(name, arguments, error) from None


def output_names(outputs: Any) -> tuple[str, ...]:
    """Return ONNX names for the outputs, from the keys and fields of the returned structure."""
    names = [_path_name(path) for path, _ in tensors_of(outputs)]
    if not names:
        raise QConvertError("the network returns no tensor", hint="return a tensor, tuple or dict")
    return descriptive_names(
        [name or f"output_{number}" for number, name in enumerate(names)], "output"
    )


def unique_output_names(outputs: Sequence[str], inputs: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the outputs, with a suffix where ONNX has that name already."""
    taken = set(inputs)
    names = []
    for output in outputs:
        name, number = output, 0
        while name in taken or (name != output and name in outputs):
            number += 1
            name = f"{output}_out" if number == 1 else f"{output}_out_{number}"
        taken.add(name)
        names.append(name)
    return tuple(names)


def rename_notes(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Return a note for every output that got another name."""
    return tuple(
        f"output `{old}` is called `{new}`: names of tensors are unique in ONNX"
        for old, new in zip(before, after, strict=True)
        if old != new
    )


def tensors_of(outputs: Any) -> list[tuple[tuple[Any, ...], torch.Tensor]]:
    """Return the tensors of any structure, each with the path to it."""
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    return [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def descriptive_names(names: Sequence[str], default: str) -> tuple[str, ...]:
    """Return the names; a single one without a meaning becomes the default."""
    if len(names) == 1 and (names[0] in MEANINGLESS or names[0].startswith("output_")):
        return (default,)
    return tuple(names)


def _forward_error(
    name: str, arguments: Sequence[torch.Tensor], error: BaseException
) -> QConvertError:
    shapes = ", ".join("x".join(map(str, tensor.shape)) or "scalar" for tensor in arguments)
    if isinstance(error, Exception) and SHAPES.search(str(error)):
        return UsageError(
            f"{name} does not run on inputs of shape {shapes}: {first_line(error)}",
            details=user_line(error),
            hint="set the shapes with `--input NAME:1x3x224x224`, once for every input",
        )
    return QConvertError(
        f"{name} raised {type(error).__name__} in its forward: {first_line(error)}",
        details=user_line(error),
        hint=f"run it in Python on inputs of shape {shapes} to reproduce this",
    )


def _to_array(tensor: torch.Tensor) -> Any:
    """Return an array; bfloat16, which NumPy lacks, becomes float32."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path
    ]
    return "" if all(part.isdigit() for part in parts) else "_".join(parts)
