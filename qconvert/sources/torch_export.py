"""Export a torch module or program to ONNX, with meaningful names and a dynamic batch."""

import ast
import contextlib
import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import TensorSpec
from qconvert.sources import Source
from qconvert.sources.torch_forward import (
    Forward,
    descriptive_names,
    output_names,
    rename_notes,
    run_network,
    unique_output_names,
)

FIXED_BATCH = "this network cannot be exported with a dynamic batch"
FIXED_BATCH_HINT = "its code fixes the batch somewhere; `--batch 1` exports one size"

# The batch of example inputs: an export with a first dimension of 1 would fix it.
DYNAMIC_EXAMPLE = 2

# Where torch's exporter records the modules of a node.
SCOPES = "pkg.torch.onnx.name_scopes"


def from_module(
    name: str, module: torch.nn.Module, specs: Sequence[TensorSpec], export: ExportConfig
) -> Source:
    """Export a module in evaluation mode; the batch is dynamic unless `export` has a number."""
    module = module.eval()
    parameters, has_varargs = _parameters(module)
    if all(spec.name in parameters for spec in specs):  # put them into the order of `forward`
        specs = sorted(specs, key=lambda spec: parameters.index(spec.name))
    inputs = _input_names(parameters, specs)
    # An input has the batch if its first size is that of the first input that has one.
    batch_size = next((spec.shape[0] for spec in specs if spec.shape), None)
    batched = [bool(spec.shape) and spec.shape[0] == batch_size for spec in specs]
    is_dynamic = export.batch in (None, "dynamic") and any(batched)
    batch = DYNAMIC_EXAMPLE if is_dynamic else export.batch
    examples = _examples(specs, batched, batch if isinstance(batch, int) else 1)
    outputs = output_names(run_network(f"`{name}`", module, examples))
    shapes: Any = None
    if is_dynamic:
        dimension = torch.export.Dim("batch")
        shapes = tuple({0: dimension} if has_batch else None for has_batch in batched)
        if has_varargs:  # `forward(*xs)` takes the shapes of `xs` as one nested tuple
            shapes = (*shapes[: len(parameters)], shapes[len(parameters) :])
    forward = Forward(module, inputs, unique_output_names(outputs, inputs))
    source = _export(name, module, forward, export, args=examples, dynamic_shapes=shapes)
    dynamic = [spec for spec, has_batch in zip(source.inputs, batched, strict=True) if has_batch]
    if is_dynamic and not all(isinstance(spec.shape[0], str) for spec in dynamic):
        details = [str(spec) for spec in source.inputs]
        raise QConvertError(FIXED_BATCH, details=details, hint=FIXED_BATCH_HINT)
    return replace(source, notes=rename_notes(outputs, forward.outputs))


def from_program(name: str, program: torch.export.ExportedProgram, export: ExportConfig) -> Source:
    """Convert an exported program, with the dimensions it was exported with."""
    call = _ProgramCall.of(program)
    inputs, outputs = descriptive_names(call.names, "input"), _program_outputs(program)
    forward = Forward(call, inputs, unique_output_names(outputs, inputs))
    source = _export(name, program, forward, export)
    return replace(source, notes=rename_notes(outputs, forward.outputs))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hide what torch and its exporter print, log and warn; exceptions pass."""
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


def name_nodes_by_module(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes are called `/blocks/0/conv/Conv`, and their outputs after them.

    Nodes that the exporter's optimizer introduced have no scope; they join the module of the node
    before them. Numbers distinguish the nodes of one module, in the order of the graph.
    """
    model = model.clone()
    counts: Counter[str] = Counter()
    for node in model.graph:
        name = f"{_scope(node)}/{node.op_type}"
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}_output_{index}"
    return model


def _scope(node: ir.Node) -> str:
    """Return the module of a node: its weight's, else the recorded one, else its input's."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is not None and weight.is_initializer() and (weight.name or "").endswith(".weight"):
        return _module_path(str(weight.name).removesuffix(".weight"))
    if recorded := node.metadata_props.get(SCOPES):
        scopes = [str(scope) for scope in ast.literal_eval(recorded)]
        return _module_path(scopes[-2]) if len(scopes) > 1 else ""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and (producer.name or "").startswith("/"):
            return str(producer.name).rpartition("/")[0]
    return ""


def _module_path(dotted: str) -> str:
    return "".join(f"/{part}" for part in dotted.split(".") if part)


@dataclass(frozen=True)
class _ProgramCall:
    """Calls an exported program with its tensors in order.

    The program takes them in the structure it was exported with: keywords, dicts, constants.
    """

    module: torch.nn.Module
    structure: pytree.TreeSpec
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> "_ProgramCall":
        signature = program.graph_signature
        arguments = tuple(
            spec.arg for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT
        )
        for argument in arguments:
            if not isinstance(argument, (TensorArgument, ConstantArgument)):
                raise QConvertError(
                    f"this program takes `{argument.name}`, which is a number, not a tensor",
                    hint="export it again with that number fixed, or with a tensor in its place",
                )
        return cls(program.module(), program.call_spec.in_spec, arguments)

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs that are tensors; the others keep their values of the export."""
        return tuple(
            argument.name for argument in self.arguments if isinstance(argument, TensorArgument)
        )

    def __call__(self, *tensors: torch.Tensor) -> Any:
        remaining = iter(tensors)
        leaves = [
            next(remaining) if isinstance(argument, TensorArgument) else argument.value
            for argument in self.arguments
        ]
        arguments, keywords = pytree.tree_unflatten(leaves, self.structure)
        return self.module(*arguments, **keywords)


def _program_outputs(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Name the outputs by the structure that the program returns, without running it."""
    leaves = [
        torch.empty(0) if isinstance(spec.arg, TensorArgument) else None
        for spec in program.graph_signature.output_specs
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    structure = program.call_spec.out_spec
    assert structure is not None
    return output_names(pytree.tree_unflatten(leaves, structure))


def _parameters(module: torch.nn.Module) -> tuple[list[str], bool]:
    """Return the positional parameters of `forward`, and whether it takes any number more."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    kinds = [parameter.kind for parameter in parameters]
    return names, inspect.Parameter.VAR_POSITIONAL in kinds


def _input_names(parameters: Sequence[str], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the ONNX names of the inputs: the user's, else those of the parameters."""
    if all(spec.name for spec in specs):
        return tuple(spec.name for spec in specs)
    numbered = [f"input_{number}" for number in range(len(parameters), len(specs))]
    return descriptive_names([*parameters[: len(specs)], *numbered], "input")


def _examples(
    specs: Sequence[TensorSpec], batched: Sequence[bool], batch: int
) -> tuple[torch.Tensor, ...]:
    """Return random tensors, those with a batch of size `batch`."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for spec, has_batch in zip(specs, batched, strict=True):
        sizes = [int(size) for size in spec.shape]
        if has_batch:
            sizes[0] = batch
        if spec.dtype.kind == "f":
            example = torch.randn(sizes, generator=generator)
        else:
            example = torch.randint(0, 2, sizes, generator=generator)
        examples.append(example.to(getattr(torch, str(spec.dtype))))
    return tuple(examples)


def _export(
    name: str,
    network: torch.nn.Module | torch.export.ExportedProgram,
    forward: Forward,
    export: ExportConfig,
    **options: Any,
) -> Source:
    try:
        with silenced():
            program = torch.onnx.export(
                network,
                dynamo=True,
                verbose=False,
                input_names=list(forward.inputs),
                output_names=list(forward.outputs),
                opset_version=export.opset,
                **options,
            )
    except (Exception, SystemExit) as error:
        raise _export_error(error) from None
    assert program is not None
    model = name_nodes_by_module(program.model)
    specs = onnx_io.inputs(model)
    for spec in specs:
        if spec.dtype.kind not in "fiub":
            raise UsageError(
                f"input `{spec.name}` is {spec.dtype}, which ONNX Runtime does not take",
                hint="give it float32 inputs: `module.float()`, with examples of `torch.float32`",
            )
    return Source(name, model, specs, forward)


def _export_error(error: BaseException) -> QConvertError:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if "batch" in text and ("onstraint" in text or "specialized" in text or "Dim" in text):
        return QConvertError(FIXED_BATCH, details=[first_line(error)], hint=FIXED_BATCH_HINT)
    return QConvertError(
        f"torch could not export this network: {first_line(error)}",
        hint="`torch.export.export(module, inputs)` shows where; branches on data must go",
    )
