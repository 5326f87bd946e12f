"""ONNX files in and out: refused with a reason, or whole; written whole, or not at all."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir import external_data

from qconvert import drafts, onnx_check
from qconvert.errors import QConvertError, UsageError, located, reason
from qconvert.feeds import TensorSpec

# Protobuf cannot hold 2 GiB; what is not weights needs some room beside them.
SINGLE_FILE_BYTES = 2**31 - 2**27
# Handed over as one piece, weights are in memory several times until a session has read them.
IN_MEMORY_BYTES = 2**28
KEEP_INSIDE_BYTES = 1024

# From this IR version on an initializer need not be listed as an input too.
FREE_INITIALIZERS = 4
IR_VERSION = 10
# What the first dimension of an input is called where it is below zero.
BATCH = "batch"


def load(path: Path) -> ir.Model:
    """Read an ONNX file; its external data stays on disk until it is used.

    Initializers that the file also lists as inputs are defaults that a caller may override. They
    are treated as constants: none of them is an input of the model returned.
    """
    _require_file(path)
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        raise onnx_check.not_onnx(path, reason(error)) from None
    onnx_check.require_readable(proto, path)
    model = _deserialize(proto, path)
    external_data.set_base_dir(model.graph, path.parent)
    onnx_check.require_external(tensors(model), path)
    onnx_check.require_known(nodes(model), model.functions.values(), path)
    onnx_check.require_valid(path)
    _fix_defaults(model)
    _open_negatives(model)
    return model


def save(model: ir.Model, path: Path, *, apart: bool = False) -> None:
    """Write one file, or if large or `apart` one and its data beside it; complete when it appears.

    The data file carries its hash in its name, so a model file never points at another's data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with located(path), drafts.draft(path.parent) as folder:
        draft = folder / path.name
        if not apart and weight_bytes(model) < SINGLE_FILE_BYTES:
            # Written here rather than by `ir.save`, which would leave external tensors outside.
            draft.write_bytes(serialize(model))
        else:
            name = _save_external(model, draft)
            (folder / name).replace(path.parent / name)
        draft.chmod(0o666 & ~_umask())
        outdated = files(path)[1:]
        draft.replace(path)
        for old in set(outdated) - set(files(path)):
            old.unlink(missing_ok=True)


def files(path: Path) -> tuple[Path, ...]:
    """Return the files of a saved model: itself, then the data that `save` put beside it."""
    own = re.compile(re.escape(path.stem) + r"-[0-9a-f]{8}\.data")
    if not path.is_file():
        return (path,)
    beside = {each for each in path.parent.iterdir() if own.fullmatch(each.name)}
    content = path.read_bytes() if beside else b""
    return (path, *sorted(each for each in beside if each.name.encode() in content))


def serialize(model: ir.Model) -> bytes:
    """Return the bytes of a model below 2 GB, weights inside; the same model, the same bytes."""
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors(model)):
        model = external_data.load_to_model(model.clone())
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def fingerprint(model: ir.Model) -> str:
    """Return the sha256 of graph and weights, wherever they are stored, without the metadata."""
    bare = model.clone()
    bare.metadata_props.clear()
    try:
        text = ir.to_onnx_text(bare, exclude_initializers=True)
    except onnx.shape_inference.InferenceError as error:  # what the checker of ONNX passed over
        raise QConvertError(
            f"the model holds a tensor that is not whole: {reason(error)}",
            hint="export it again",
        ) from None
    digest = hashlib.sha256(text.encode())
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                digest.update(_content(value.const_value))
    return digest.hexdigest()


def require_valid(model: ir.Model) -> None:
    """Refuse a model that breaks the rules of ONNX; one above 2 GB is taken as it is."""
    if weight_bytes(model) >= SINGLE_FILE_BYTES:
        return
    try:
        onnx.checker.check_model(serialize(model))
    except onnx.checker.ValidationError as error:
        raise QConvertError(
            f"the cleaned model is not valid ONNX: {reason(error)}",
            hint="`--skip` leaves out a pass; please report the model and this sentence",
        ) from None


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all stored tensors."""
    return sum(tensor.nbytes for tensor in tensors(model))


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every stored tensor: initializers and attributes, subgraphs and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in nodes(model):
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.TENSOR:
                yield attribute.as_tensor()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node, those of subgraphs and functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return what the model must be fed."""
    stored = model.graph.initializers
    return tuple(spec(value) for value in model.graph.inputs if value.name not in stored)


def outputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return what the model answers with."""
    return tuple(spec(value) for value in model.graph.outputs)


def spec(value: ir.Value) -> TensorSpec:
    """Return name, element type and shape of a value."""
    dimensions = tuple(_dimension(size) for size in value.shape or ())
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    return TensorSpec(value.name or "", dtype, dimensions)


def _dimension(size: int | ir.SymbolicDim) -> int | str:
    return size if isinstance(size, int) else str(size.value or "")


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(
            f"`{path}` is a folder, not an ONNX file", hint="name the .onnx file inside it"
        )
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=_nearby(path))
    if path.stat().st_size == 0:
        raise QConvertError(f"`{path}` is empty", hint="export or copy the model again")


def _nearby(path: Path) -> str:
    found = sorted(path.parent.glob("*.onnx")) if path.parent.is_dir() else []
    if not found:
        return "check the path; relative paths start at the current folder"
    return "there is " + ", ".join(f"`{other}`" for other in found[:3])


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many kinds for graphs that contradict themselves
        why = reason(_innermost(error))
        raise onnx_check.not_onnx(path, f"its graph cannot be read: {why}") from None


def _innermost(error: BaseException) -> BaseException:
    """Return what went wrong first; what was raised on the way out says only where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _fix_defaults(model: ir.Model) -> None:
    """Take the initializers out of the inputs, where files before IR version 4 had to list them."""
    stored = model.graph.initializers
    kept = [value for value in model.graph.inputs if value.name not in stored]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    if model.ir_version < FREE_INITIALIZERS:
        model.ir_version = IR_VERSION


def _open_negatives(model: ir.Model) -> None:
    """Open every dimension below zero, which older exporters write for one that is not known."""
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in {*graph.inputs, *graph.outputs, *made}:
            sizes = [] if value.shape is None else list(value.shape)
            below = [isinstance(size, int) and size < 0 for size in sizes]
            if any(below):
                known = [None if wrong else size for wrong, size in zip(below, sizes, strict=True)]
                if below[0] and value in model.graph.inputs:
                    known[0] = ir.SymbolicDim(BATCH)
                value.shape = ir.Shape(known)


def _content(tensor: ir.TensorProtocol) -> bytes:
    """Return the bytes of a tensor; strings with their lengths, so that none runs into another."""
    if tensor.dtype is not ir.DataType.STRING:
        return tensor.tobytes()
    return repr([bytes(each) for each in tensor.numpy().ravel()]).encode()


def _save_external(model: ir.Model, draft: Path) -> str:
    name = f"{draft.stem}-{fingerprint(model)[:8]}.data"
    ir.save(model, draft, external_data=name, size_threshold_bytes=KEEP_INSIDE_BYTES)
    return name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
