"""Export a torch module or program to ONNX, with its own forward as the reference."""

import ast
import contextlib
import inspect
import io
import logging
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.tensors import Tensors, TensorSpec, parse_spec, random_inputs
from qconvert.core.user_code import user_line
from qconvert.sources import Source

FIXED_BATCH = "this network cannot be exported with a dynamic batch"
FIXED_BATCH_HINT = "its code fixes the batch size; `--batch 1` exports that size"

# Names without a meaning; a single input or output of such a name is called `input` or `output`.
MEANINGLESS = {"x", "input", "inputs", "inp", "img", "args", "args_0", "input_", "X"}

# Words in PyTorch's errors about input shapes.
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
        """Run the network on arrays; bfloat16, which NumPy lacks, becomes float32."""
        arguments = [torch.from_numpy(np.array(feeds[name], order="C")) for name in self.inputs]
        leaves = pytree.tree_leaves(_run("the network", self.call, arguments))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) != len(self.outputs):
            raise QConvertError(
                f"the network returns {len(tensors)} tensors, and returned {len(self.outputs)} "
                "when it was exported",
                hint="the number of outputs must not depend on the input",
            )
        return {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
            for name, tensor in zip(self.outputs, tensors, strict=True)
        }


def from_module(
    name: str, module: torch.nn.Module, specs: Sequence[TensorSpec], export: ExportConfig
) -> Source:
    """Export a module in evaluation mode; `specs` are its inputs, unless `export` names others."""
    module = module.eval()
    specs = [parse_spec(text) for text in export.inputs] or specs
    signature = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [parameter.name for parameter in signature if parameter.kind in positional]
    if all(spec.name in parameters for spec in specs):  # put them into the order of `forward`
        specs = sorted(specs, key=lambda spec: parameters.index(spec.name))
    inputs = tuple(spec.name for spec in specs)
    if not all(inputs):
        numbered = [f"input_{number}" for number in range(len(parameters), len(specs))]
        inputs = _descriptive_names([*parameters[: len(specs)], *numbered], "input")
    # An input has the batch if its first size is that of the first input that has one.
    batch_size = next((spec.shape[0] for spec in specs if spec.shape), None)
    batched = [bool(spec.shape) and spec.shape[0] == batch_size for spec in specs]
    is_dynamic = export.batch in (None, "dynamic") and any(batched)
    # Examples of a dynamic batch have 2 images: a first dimension of 1 would fix it.
    batch = 2 if is_dynamic else export.batch
    example_specs = []
    for index, (spec, has_batch) in enumerate(zip(specs, batched, strict=True)):
        shape = ("batch", *spec.shape[1:]) if has_batch else spec.shape
        example_specs.append(replace(spec, name=str(index), shape=shape))
    arrays = random_inputs(example_specs, batch if isinstance(batch, int) else 1, seed=0)
    examples = tuple(torch.from_numpy(array) for array in arrays.values())
    outputs = _output_names(_run(f"`{name}`", module, examples))
    shapes: Any = None
    if is_dynamic:
        dimension = torch.export.Dim("batch")
        shapes = tuple({0: dimension} if has_batch else None for has_batch in batched)
        if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in signature):
            # `forward(*xs)` takes the shapes of `xs` as one nested tuple.
            shapes = (*shapes[: len(parameters)], shapes[len(parameters) :])
    forward = Forward(module, inputs, unique_output_names(outputs, inputs))
    source = _export(name, module, forward, outputs, export, args=examples, dynamic_shapes=shapes)
    dynamic = [spec for spec, has_batch in zip(source.inputs, batched, strict=True) if has_batch]
    if is_dynamic and not all(isinstance(spec.shape[0], str) for spec in dynamic):
        details = [str(spec) for spec in source.inputs]
        raise QConvertError(FIXED_BATCH, details=details, hint=FIXED_BATCH_HINT)
    return source


def from_program(name: str, program: torch.export.ExportedProgram, export: ExportConfig) -> Source:
    """Convert an exported program, with the dimensions and constants it was exported with."""
    signature, module = program.graph_signature, program.module()
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    arguments = [spec.arg for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    for argument in arguments:
        if not isinstance(argument, (TensorArgument, ConstantArgument)):
            raise QConvertError(
                f"this program takes `{argument.name}`, which is a number, not a tensor",
                hint="export it again with that number fixed, or with a tensor in its place",
            )

    def call(*tensors: torch.Tensor) -> Any:
        # Keywords, dicts and constants are in the structure in which the program was exported.
        remaining = iter(tensors)
        leaves = [
            argument.value if isinstance(argument, ConstantArgument) else next(remaining)
            for argument in arguments
        ]
        positional, keywords = pytree.tree_unflatten(leaves, in_spec)
        return module(*positional, **keywords)

    names = [argument.name for argument in arguments if isinstance(argument, TensorArgument)]
    inputs = _descriptive_names(names, "input")
    # The outputs are named by the structure that the program returns, without running it.
    leaves = [
        torch.empty(0) if isinstance(spec.arg, TensorArgument) else None
        for spec in signature.output_specs
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    assert out_spec is not None
    outputs = _output_names(pytree.tree_unflatten(leaves, out_spec))
    forward = Forward(call, inputs, unique_output_names(outputs, inputs))
    return _export(name, program, forward, outputs, export)


def _export(
    name: str,
    network: torch.nn.Module | torch.export.ExportedProgram,
    forward: Forward,
    outputs: Sequence[str],
    export: ExportConfig,
    **options: Any,
) -> Source:
    """Export a network; a note says which of the `outputs` got another name."""
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
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = str(cause)
        if "batch" in text and ("onstraint" in text or "specialized" in text or "Dim" in text):
            raise QConvertError(
                FIXED_BATCH, details=[first_line(cause)], hint=FIXED_BATCH_HINT
            ) from None
        raise QConvertError(
            f"torch could not export this network: {first_line(cause)}",
            hint="`torch.export.export(module, inputs)` shows where; remove branches that depend on data",
        ) from None
    assert program is not None
    model = _name_nodes_by_module(program.model)
    specs = onnx_io.inputs(model)
    for spec in specs:
        if spec.dtype.kind not in "fiub":
            raise UsageError(
                f"input `{spec.name}` is {spec.dtype}, which ONNX Runtime does not support",
                hint="give it float32 inputs: `module.float()`, with examples of `torch.float32`",
            )
    notes = tuple(
        f"output `{old}` is called `{new}`: names of tensors are unique in ONNX"
        for old, new in zip(outputs, forward.outputs, strict=True)
        if old != new
    )
    return Source(name, model, specs, forward, notes=notes)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress the output, logs and warnings of torch and its exporter; exceptions pass."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        logging.disable(disabled)


def _run(name: str, network: Callable[..., Any], arguments: Sequence[torch.Tensor]) -> Any:
    """Run the user's network; what it prints goes to stderr."""
    try:
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            return network(*arguments)
    except (Exception, SystemExit) as error:
        shapes = ", ".join("x".join(map(str, tensor.shape)) or "scalar" for tensor in arguments)
        if isinstance(error, Exception) and SHAPES.search(str(error)):
            raise UsageError(
                f"{name} does not run on inputs of shape {shapes}: {first_line(error)}",
                details=user_line(error),
                hint="set the shapes with `--input NAME:1x3x224x224`, once for every input",
            ) from None
        raise QConvertError(
            f"{name} raised {type(error).__name__} in its forward: {first_line(error)}",
            details=user_line(error),
            hint=f"run it in Python on inputs of shape {shapes} to reproduce this",
        ) from None


# --- names ---


def _output_names(outputs: Any) -> tuple[str, ...]:
    """Return names for the tensors of any structure, from its keys and fields."""
    names: list[str] = []
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if not isinstance(leaf, torch.Tensor):
            continue
        keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))) for key in path)
        parts = [str(key) for key in keys]
        name = "" if all(part.isdigit() for part in parts) else "_".join(parts)
        names.append(name or f"output_{len(names)}")
    if not names:
        raise QConvertError("the network returns no tensor", hint="return a tensor, tuple or dict")
    return _descriptive_names(names, "output")


def _descriptive_names(names: Sequence[str], default: str) -> tuple[str, ...]:
    """Return the names; a single one without a meaning becomes the default."""
    if len(names) == 1 and (names[0] in MEANINGLESS or names[0].startswith("output_")):
        return (default,)
    return tuple(names)


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


def _name_nodes_by_module(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes are called `/blocks/0/conv/Conv`, and their outputs after them."""
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
        path = str(weight.name).removesuffix(".weight")
    elif recorded := node.metadata_props.get("pkg.torch.onnx.name_scopes"):
        scopes = [str(scope) for scope in ast.literal_eval(recorded)]
        path = scopes[-2] if len(scopes) > 1 else ""
    else:
        producers = (value.producer() for value in node.inputs if value is not None)
        names = (producer.name or "" for producer in producers if producer is not None)
        return next((name for name in names if name.startswith("/")), "").rpartition("/")[0]
    return "".join(f"/{part}" for part in path.split(".") if part)
