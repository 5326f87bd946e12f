"""A torch module or exported program as a `Source`: its ONNX form and its own forward."""

import contextlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from qconvert import onnx_io
from qconvert.config import Export
from qconvert.errors import QConvertError, UsageError, reason
from qconvert.feeds import Feeds, TensorSpec
from qconvert.sources.source import Source
from qconvert.sources.torch_names import name_by_module

# Names that say nothing; a single input or output of such a name is called what it is.
NAMELESS = {"x", "input", "inputs", "inp", "img", "args", "args_0", "input_", "X"}

FIXED_BATCH = "this network cannot be exported with a dynamic batch"
FIXED_BATCH_HINT = "its code fixes the batch somewhere; `--batch 1` exports one size"

# An export with a first dimension of 1 would fix it there.
DYNAMIC_EXAMPLE = 2


@dataclass(frozen=True)
class Forward:
    """A callable network with the names of what goes in (in order) and comes out."""

    call: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, feeds: Feeds) -> Feeds:
        """Run the network on arrays."""
        arguments = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.inputs]
        answer = tensors_of(_call(self.call, *arguments))
        return {
            name: value.detach().cpu().numpy()
            for name, (_, value) in zip(self.outputs, answer, strict=True)
        }


def from_module(
    name: str, module: torch.nn.Module, specs: Sequence[TensorSpec], export: Export
) -> Source:
    """Export a module in evaluation mode; the batch is dynamic unless a number is asked for."""
    module = module.eval()
    specs = _in_order(module, specs)
    inputs = input_names(module, specs)
    dynamic = export.batch in (None, "dynamic")
    examples = _examples(specs, DYNAMIC_EXAMPLE if dynamic else int(export.batch or 1))
    outputs = output_names(_try(name, module, examples))
    shared = [bool(spec.shape) and spec.shape[0] == specs[0].shape[0] for spec in specs]
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if dynamic and follows else None for follows in shared)
    model = _export(
        module,
        examples,
        dynamic_shapes=_by_parameter(module, shapes) if dynamic else None,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=export.opset,
    )
    found = onnx_io.inputs(model)
    if dynamic and not all(
        isinstance(s.shape[0], str) for s, b in zip(found, shared, strict=True) if b
    ):
        raise QConvertError(
            FIXED_BATCH, details=[str(spec) for spec in found], hint=FIXED_BATCH_HINT
        )
    return Source(name, model, found, Forward(module, inputs, outputs))


def from_program(name: str, program: torch.export.ExportedProgram, export: Export) -> Source:
    """Turn an exported program into ONNX; its dimensions are those it was exported with."""
    module = program.module()
    inputs = _meaningful(list(program.graph_signature.user_inputs), "input")
    arguments, keywords = program.example_inputs or ((), {})
    outputs = output_names(_call(module, *arguments, **keywords))
    model = _export(
        program,
        (),
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=export.opset,
    )
    return Source(name, model, onnx_io.inputs(model), Forward(module, inputs, outputs))


def input_names(module: torch.nn.Module, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the ONNX names of the inputs: the user's, else those of `forward`."""
    if all(spec.name for spec in specs):
        return tuple(spec.name for spec in specs)
    parameters = _parameters(module)[: len(specs)]
    if len(parameters) < len(specs):
        parameters += [f"input_{number}" for number in range(len(parameters), len(specs))]
    return _meaningful(parameters, "input")


def _in_order(module: torch.nn.Module, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Put inputs that are named after the parameters of `forward` into its order."""
    parameters = _parameters(module)
    if not all(spec.name in parameters for spec in specs):
        return list(specs)
    return sorted(specs, key=lambda spec: parameters.index(spec.name))


def output_names(answer: Any) -> tuple[str, ...]:
    """Return the ONNX names of the outputs, from the keys and fields the network answers with."""
    found = [_path_name(path) for path, _ in tensors_of(answer)]
    if not found:
        raise QConvertError("the network returns no tensor", hint="return a tensor, tuple or dict")
    return _meaningful([name or f"output_{number}" for number, name in enumerate(found)], "output")


def tensors_of(answer: Any) -> list[tuple[tuple[Any, ...], torch.Tensor]]:
    """Return the tensors in an answer of any structure, each with the path to it."""
    found, _ = pytree.tree_flatten_with_path(answer)
    return [(path, value) for path, value in found if isinstance(value, torch.Tensor)]


def _meaningful(names: list[str], single: str) -> tuple[str, ...]:
    if len(names) == 1 and (names[0] in NAMELESS or names[0].startswith("output_")):
        return (single,)
    return tuple(names)


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path
    ]
    return "" if all(part.isdigit() for part in parts) else "_".join(parts)


def _parameters(module: torch.nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(module.forward).parameters.values()
    return [parameter.name for parameter in found if parameter.kind in kinds]


def _by_parameter(module: torch.nn.Module, shapes: tuple[Any, ...]) -> Any:
    """`forward(*xs)` wants its shapes as one nested tuple."""
    takes_any = any(
        parameter.kind is inspect.Parameter.VAR_POSITIONAL
        for parameter in inspect.signature(module.forward).parameters.values()
    )
    named = len(_parameters(module))
    return (*shapes[:named], shapes[named:]) if takes_any else shapes


def _examples(specs: Sequence[TensorSpec], batch: int) -> tuple[torch.Tensor, ...]:
    """Return random tensors; inputs that share the first one's leading size get the batch."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for spec in specs:
        sizes = [int(size) for size in spec.shape]
        if sizes and sizes[0] == int(specs[0].shape[0]):
            sizes[0] = batch
        if spec.dtype.kind == "f":
            value = torch.randn(sizes, generator=generator)
        else:
            value = torch.randint(0, 2, sizes, generator=generator)
        found.append(value.to(getattr(torch, str(spec.dtype))))
    return tuple(found)


def _call(network: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Run the user's network; what it prints is talk, and stdout is for results."""
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        return network(*arguments, **keywords)


def _try(name: str, module: torch.nn.Module, examples: tuple[torch.Tensor, ...]) -> Any:
    try:
        return _call(module, *examples)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, each.shape)) for each in examples)
        raise UsageError(
            f"`{name}` does not run on inputs of shape {shapes}: {reason(error)}",
            hint="say the shapes with `--input NAME:1x3x224x224`, once for every input",
        ) from None


def _export(
    network: torch.nn.Module | torch.export.ExportedProgram,
    examples: tuple[torch.Tensor, ...],
    **options: Any,
) -> ir.Model:
    try:
        with _quiet():
            program = torch.onnx.export(network, examples, dynamo=True, verbose=False, **options)
    except Exception as error:
        raise _refused(error) from None
    assert program is not None
    return name_by_module(program.model)


def _refused(error: Exception) -> QConvertError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    if "batch" in text and ("onstraint" in text or "specialized" in text or "Dim" in text):
        return QConvertError(FIXED_BATCH, details=[reason(cause)], hint=FIXED_BATCH_HINT)
    return QConvertError(
        f"torch could not export this network: {reason(cause)}",
        hint="`torch.export.export(module, inputs)` shows where; branches on data must go",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints, logs and warns off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
