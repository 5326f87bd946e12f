"""What torch prints, logs and warns while it reads and exports, kept off the user's screen."""

import ast
import contextlib
import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep torch and the exporter silent; what they raise is told as ever."""
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


SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes_by_module(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes are called `/blocks/0/conv/Conv`, their outputs after them.

    Nodes that the exporter's own optimizer made carry no scope; they join the module of the node
    before them. Numbers tell nodes of one module apart, in the order of the graph.
    """
    model = model.clone()
    taken: Counter[str] = Counter()
    for node in model.graph:
        stem = f"{_scope(node)}/{node.op_type}"
        taken[stem] += 1
        node.name = stem if taken[stem] == 1 else f"{stem}_{taken[stem] - 1}"
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}_output_{index}"
    return model


def _scope(node: ir.Node) -> str:
    """Return the module of a node: its weight's, else the recorded one, else its input's."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is not None and weight.is_initializer() and (weight.name or "").endswith(".weight"):
        return _path(str(weight.name).removesuffix(".weight"))
    if recorded := node.metadata_props.get(SCOPES):
        scopes = [str(scope) for scope in ast.literal_eval(recorded)]
        return _path(scopes[-2]) if scopes[1:] else ""
    for value in node.inputs:
        before = value.producer() if value is not None else None
        if before is not None and (before.name or "").startswith("/"):
            return str(before.name).rpartition("/")[0]
    return ""


def _path(dotted: str) -> str:
    return "".join(f"/{part}" for part in dotted.split(".") if part)


FIXED_BATCH = "this network cannot be exported with a dynamic batch"
FIXED_BATCH_HINT = "its code fixes the batch somewhere; `--batch 1` exports one size"

# An export with a first dimension of 1 would fix it there.
DYNAMIC_EXAMPLE = 2


def from_module(
    name: str, module: torch.nn.Module, specs: Sequence[TensorSpec], export: ExportConfig
) -> Source:
    """Export a module in evaluation mode; the batch is dynamic unless a number is asked for."""
    module = module.eval()
    specs = _in_order(module, specs)
    inputs = input_names(module, specs)
    shared = _share_batch(specs)
    dynamic = export.batch in (None, "dynamic") and any(shared)
    size = DYNAMIC_EXAMPLE if dynamic else export.batch
    examples = _examples(specs, shared, size if isinstance(size, int) else 1)
    answered = output_names(run_network(f"`{name}`", module, examples))
    outputs = unique_output_names(answered, inputs)
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
    found = _runnable(onnx_io.inputs(model))
    if dynamic and not all(
        isinstance(s.shape[0], str) for s, b in zip(found, shared, strict=True) if b
    ):
        raise QConvertError(
            FIXED_BATCH, details=[str(spec) for spec in found], hint=FIXED_BATCH_HINT
        )
    notes = rename_notes(answered, outputs)
    return Source(name, model, found, Forward(module, inputs, outputs), notes=notes)


def from_program(name: str, program: torch.export.ExportedProgram, export: ExportConfig) -> Source:
    """Turn an exported program into ONNX; its dimensions are those it was exported with."""
    call = _Call.of(program)
    inputs = descriptive_names(call.names, "input")
    answered = _outputs_of(program)
    outputs = unique_output_names(answered, inputs)
    model = _export(
        program,
        (),
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=export.opset,
    )
    found = _runnable(onnx_io.inputs(model))
    notes = rename_notes(answered, outputs)
    return Source(name, model, found, Forward(call, inputs, outputs), notes=notes)


@dataclass(frozen=True)
class _Call:
    """An exported program, called with its tensors in order.

    It wants them in the very structure it was exported with: keywords, dicts, constants and all.
    """

    module: torch.nn.Module
    structure: pytree.TreeSpec
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> "_Call":
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
        """The inputs that are tensors; the others are what they were at the export."""
        return tuple(each.name for each in self.arguments if isinstance(each, TensorArgument))

    def __call__(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [
            next(given) if isinstance(each, TensorArgument) else each.value
            for each in self.arguments
        ]
        arguments, keywords = pytree.tree_unflatten(leaves, self.structure)
        return self.module(*arguments, **keywords)


def _outputs_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Name the outputs by the structure the program answers in, without running it."""
    leaves = [
        torch.empty(0) if isinstance(spec.arg, TensorArgument) else None
        for spec in program.graph_signature.output_specs
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    structure = program.call_spec.out_spec
    assert structure is not None
    return output_names(pytree.tree_unflatten(leaves, structure))


def _runnable(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Refuse inputs of types that neither NumPy nor ONNX Runtime has."""
    for spec in specs:
        if spec.dtype.kind not in "fiub":
            raise UsageError(
                f"input `{spec.name}` is {spec.dtype}, which ONNX Runtime does not take",
                hint="give it float32 inputs: `module.float()`, with examples of `torch.float32`",
            )
    return specs


def input_names(module: torch.nn.Module, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the ONNX names of the inputs: the user's, else those of `forward`."""
    if all(spec.name for spec in specs):
        return tuple(spec.name for spec in specs)
    parameters = _parameters(module)[: len(specs)]
    if len(parameters) < len(specs):
        parameters += [f"input_{number}" for number in range(len(parameters), len(specs))]
    return descriptive_names(parameters, "input")


def _in_order(module: torch.nn.Module, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Put inputs that are named after the parameters of `forward` into its order."""
    parameters = _parameters(module)
    if not all(spec.name in parameters for spec in specs):
        return list(specs)
    return sorted(specs, key=lambda spec: parameters.index(spec.name))


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


def _share_batch(specs: Sequence[TensorSpec]) -> list[bool]:
    """Say of each input whether it has the batch: the leading size of the first that has one."""
    leading = next((spec.shape[0] for spec in specs if spec.shape), None)
    return [bool(spec.shape) and spec.shape[0] == leading for spec in specs]


def _examples(
    specs: Sequence[TensorSpec], shared: Sequence[bool], batch: int
) -> tuple[torch.Tensor, ...]:
    """Return random tensors; inputs that share the first one's leading size get the batch."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for spec, follows in zip(specs, shared, strict=True):
        sizes = [int(size) for size in spec.shape]
        if follows:
            sizes[0] = batch
        if spec.dtype.kind == "f":
            value = torch.randn(sizes, generator=generator)
        else:
            value = torch.randint(0, 2, sizes, generator=generator)
        found.append(value.to(getattr(torch, str(spec.dtype))))
    return tuple(found)


def _export(
    network: torch.nn.Module | torch.export.ExportedProgram,
    examples: tuple[torch.Tensor, ...],
    **options: Any,
) -> ir.Model:
    try:
        with silenced():
            program = torch.onnx.export(network, examples, dynamo=True, verbose=False, **options)
    except (Exception, SystemExit) as error:
        raise _refused(error) from None
    assert program is not None
    return name_nodes_by_module(program.model)


def _refused(error: BaseException) -> QConvertError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    if "batch" in text and ("onstraint" in text or "specialized" in text or "Dim" in text):
        return QConvertError(FIXED_BATCH, details=[first_line(cause)], hint=FIXED_BATCH_HINT)
    return QConvertError(
        f"torch could not export this network: {first_line(cause)}",
        hint="`torch.export.export(module, inputs)` shows where; branches on data must go",
    )
