"""ONNX files in and out: refused with a reason, or whole; written whole, or not at all."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx_ir import external_data

from qconvert.core import atomic
from qconvert.core.errors import QConvertError, UsageError, attach_path, first_line
from qconvert.core.tensors import TensorSpec

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
# The fields of a tensor that hold text; the others are its numbers, which may be many.
TENSOR_TEXT_FIELDS = ("name", "doc_string", "external_data")


def not_onnx_error(path: Path, why: str) -> QConvertError:
    """Return the refusal of a file that cannot be read; it tells what the file is instead."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return QConvertError(
            f"`{path}` is a Git LFS pointer, not the model", hint="run `git lfs pull`"
        )
    if start and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        why = "it is a text file"
    return QConvertError(
        f"`{path}` is not an ONNX model: {why}",
        hint="an ONNX file is binary protobuf; a file cut short by a download says the same",
    )


def require_readable(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse what the graph library reads wrongly or not at all."""
    if not proto.HasField("graph") or not proto.graph.output:
        raise not_onnx_error(path, "it holds no graph with an output")
    _require_utf8(proto, path)
    _require_known_opset(proto, path)
    for graph in _all_graphs(proto.graph):
        if graph.sparse_initializer:
            raise QConvertError(
                f"`{path}` stores `{graph.sparse_initializer[0].values.name}` as a sparse tensor, "
                "which is not supported",
                hint="export it with dense weights",
            )
        for tensor in graph.initializer:
            _require_external_entries(tensor, path)
    _require_tensor_types(proto, path)


def require_external_data(tensors: Iterable[ir.TensorProtocol], path: Path) -> None:
    """Refuse weights stored in other files unless those lie beside the model, and are whole."""
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            _require_data_file(tensor, path)


def require_known_operators(
    nodes: Iterable[ir.Node], functions: Iterable[ir.Function], path: Path
) -> None:
    """Refuse operators that neither ONNX nor the model itself defines."""
    defined = {(function.domain, function.name) for function in functions}
    strange = {
        f"{node.domain or 'ai.onnx'}::{node.op_type}"
        for node in nodes
        if (node.domain, node.op_type) not in defined and not _is_known_operator(node)
    }
    if strange:
        shown = ", ".join(f"`{name}`" for name in sorted(strange)[:5])
        raise QConvertError(
            f"`{path}` uses operators that are not in ONNX: {shown}",
            hint="export without custom operators, or cut the graph before them "
            "and run the rest outside",
        )


def require_valid_file(path: Path) -> None:
    """Refuse a file that breaks the rules of ONNX."""
    try:
        onnx.checker.check_model(_checker_input(path))
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        why = first_line(error)
        if _has_non_utf8_path(path) and "should be stored in" in why:
            raise QConvertError(
                f"the weights beside `{path}`, whose name is not UTF-8, cannot be found",
                hint="rename the file or its folder",
            ) from None
        raise QConvertError(
            f"`{path}` is not a valid ONNX model: {why}",
            hint="export it again; `python -m onnx.checker` shows the same complaint",
        ) from None


def _checker_input(path: Path) -> Path | bytes:
    """Return what the checker takes: the path, which finds the weights beside it, or the bytes."""
    return path.read_bytes() if _has_non_utf8_path(path) else path


def _has_non_utf8_path(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return True
    return False


def _require_known_opset(proto: onnx.ModelProto, path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise QConvertError(
                f"`{path}` has opset {entry.version}, which is newer than the onnx package here "
                f"knows ({newest})",
                hint=f"`pip install -U onnx`, or export it with opset {newest} or older",
            )


def _require_tensor_types(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors of no type, stored ones and those that a node brings."""
    graphs = list(_all_graphs(proto.graph))
    held = [tensor for graph in graphs for tensor in graph.initializer]
    nodes = (node for part in (*graphs, *proto.functions) for node in part.node)
    given = (each for node in nodes for each in node.attribute)
    held += [each.t for each in given if each.type == onnx.AttributeProto.TENSOR]
    for tensor in held:
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise not_onnx_error(path, f"its tensor `{tensor.name}` has no type")


def _require_utf8(message: Message, path: Path) -> None:
    """Refuse text that is not UTF-8, which comes as bytes and which nothing can write again."""
    for field, value in message.ListFields():
        if isinstance(message, onnx.TensorProto) and field.name not in TENSOR_TEXT_FIELDS:
            continue
        held = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in held:
                _require_utf8(each, path)
        elif field.type == FieldDescriptor.TYPE_STRING and bytes in map(type, held):
            raise not_onnx_error(
                path, f"`{field.name}` of its {message.DESCRIPTOR.name} is not UTF-8"
            )


def _all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _all_graphs(inner)


def _require_external_entries(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse a place in a data file that is no number, and a file that no system can have."""
    for entry in tensor.external_data:
        if "\0" in entry.value:
            raise not_onnx_error(
                path, f"the {entry.key} of the data of `{tensor.name}` holds a zero byte"
            )
        if entry.key in ("offset", "length") and not entry.value.isdecimal():
            raise QConvertError(
                f"`{path}` says `{tensor.name}` has {entry.key} `{entry.value}` in its data file, "
                "which is not a count of bytes",
                hint="export the model again",
            )


def _require_data_file(tensor: ir.ExternalTensor, path: Path) -> None:
    place = path.parent / tensor.location
    inside = place.resolve().is_relative_to(path.parent.resolve())
    if Path(tensor.location).is_absolute() or not inside:
        raise QConvertError(
            f"`{path}` keeps weights outside its own folder: `{tensor.location}`",
            hint="copy the data file beside the model and save it with a relative location",
        )
    if not place.is_file():
        raise QConvertError(
            f"`{path}` needs `{tensor.location}`, which is not beside it",
            hint="a model with external data is two or more files; copy all of them",
        )
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise QConvertError(
            f"`{path}` keeps {tensor.length} bytes for `{tensor.name}`, "
            f"which needs {tensor.nbytes}",
            hint="export the model again",
        )
    if place.stat().st_size < (tensor.offset or 0) + (tensor.length or tensor.nbytes):
        raise QConvertError(
            f"`{place}` is too short for the weights that `{path}` expects in it",
            hint="copy both files again; they must come from the same save",
        )


def _is_known_operator(node: ir.Node) -> bool:
    if node.domain in ("", "ai.onnx"):
        return bool(onnx.defs.has(node.op_type))
    return node.domain in KNOWN_DOMAINS


# Protobuf cannot hold 2 GiB; what is not weights needs some room beside them.
SINGLE_FILE_BYTES = 2**31 - 2**27
# Handed over as one piece, weights are in memory several times until a session has read them.
IN_MEMORY_BYTES = 2**28
EXTERNAL_THRESHOLD_BYTES = 1024

# From this IR version on an initializer need not be listed as an input too.
FREE_INITIALIZERS_IR_VERSION = 4
DEFAULT_IR_VERSION = 10
# What the first dimension of an input is called where it is below zero.
BATCH_DIMENSION = "batch"


def load(path: Path) -> ir.Model:
    """Read an ONNX file; its external data stays on disk until it is used.

    Initializers that the file also lists as inputs are defaults that a caller may override. They
    are treated as constants: none of them is an input of the model returned.
    """
    _require_model_file(path)
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        raise not_onnx_error(path, first_line(error)) from None
    require_readable(proto, path)
    model = _deserialize(proto, path)
    external_data.set_base_dir(model.graph, path.parent)
    require_external_data(all_tensors(model), path)
    require_known_operators(all_nodes(model), model.functions.values(), path)
    require_valid_file(path)
    _remove_initializers_from_inputs(model)
    _replace_negative_dimensions(model)
    return model


def save(model: ir.Model, path: Path, *, external: bool = False) -> None:
    """Write one file, or if large or `apart` one and its data beside it; complete when it appears.

    The data file carries its hash in its name, so a model file never points at another's data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), atomic.temporary_folder(path.parent) as folder:
        draft = folder / path.name
        if not external and weight_bytes(model) < SINGLE_FILE_BYTES:
            # Written here rather than by `ir.save`, which would leave external tensors outside.
            draft.write_bytes(serialize(model))
        else:
            name = _save_external(model, draft)
            (folder / name).replace(path.parent / name)
        draft.chmod(0o666 & ~_umask())
        outdated = model_files(path)[1:]
        draft.replace(path)
        for old in set(outdated) - set(model_files(path)):
            old.unlink(missing_ok=True)


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a saved model: itself, then the data that `save` put beside it."""
    own = re.compile(re.escape(path.stem) + r"-[0-9a-f]{8}\.data")
    if not path.is_file():
        return (path,)
    beside = {each for each in path.parent.iterdir() if own.fullmatch(each.name)}
    content = path.read_bytes() if beside else b""
    return (path, *sorted(each for each in beside if each.name.encode() in content))


def serialize(model: ir.Model) -> bytes:
    """Return the bytes of a model below 2 GB, weights inside; the same model, the same bytes."""
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in all_tensors(model)):
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
            f"the model holds a tensor that is not whole: {first_line(error)}",
            hint="export it again",
        ) from None
    digest = hashlib.sha256(text.encode())
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                digest.update(_tensor_bytes(value.const_value))
    return digest.hexdigest()


def require_valid(model: ir.Model) -> None:
    """Refuse a model that breaks the rules of ONNX; one above 2 GB is taken as it is."""
    if weight_bytes(model) >= SINGLE_FILE_BYTES:
        return
    try:
        onnx.checker.check_model(serialize(model))
    except onnx.checker.ValidationError as error:
        raise QConvertError(
            f"the cleaned model is not valid ONNX: {first_line(error)}",
            hint="`--skip` leaves out a pass; please report the model and this sentence",
        ) from None


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all stored tensors."""
    return sum(tensor.nbytes for tensor in all_tensors(model))


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every stored tensor: initializers and attributes, subgraphs and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.TENSOR:
                yield attribute.as_tensor()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node, those of subgraphs and functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return what the model must be fed."""
    stored = model.graph.initializers
    return tuple(tensor_spec(value) for value in model.graph.inputs if value.name not in stored)


def outputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return what the model answers with."""
    return tuple(tensor_spec(value) for value in model.graph.outputs)


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Return name, element type and shape of a value."""
    dimensions = tuple(_dimension(size) for size in value.shape or ())
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    return TensorSpec(value.name or "", dtype, dimensions)


def _dimension(size: int | ir.SymbolicDim) -> int | str:
    return size if isinstance(size, int) else str(size.value or "")


def _require_model_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(
            f"`{path}` is a folder, not an ONNX file", hint="name the .onnx file inside it"
        )
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=_nearby_models_hint(path))
    if path.stat().st_size == 0:
        raise QConvertError(f"`{path}` is empty", hint="export or copy the model again")


def _nearby_models_hint(path: Path) -> str:
    found = sorted(path.parent.glob("*.onnx")) if path.parent.is_dir() else []
    if not found:
        return "check the path; relative paths start at the current folder"
    return "there is " + ", ".join(f"`{other}`" for other in found[:3])


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many kinds for graphs that contradict themselves
        why = first_line(_root_cause(error))
        raise not_onnx_error(path, f"its graph cannot be read: {why}") from None


def _root_cause(error: BaseException) -> BaseException:
    """Return what went wrong first; what was raised on the way out says only where."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _remove_initializers_from_inputs(model: ir.Model) -> None:
    """Take the initializers out of the inputs, where files before IR version 4 had to list them."""
    stored = model.graph.initializers
    kept = [value for value in model.graph.inputs if value.name not in stored]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    if model.ir_version < FREE_INITIALIZERS_IR_VERSION:
        model.ir_version = DEFAULT_IR_VERSION


def _replace_negative_dimensions(model: ir.Model) -> None:
    """Open every dimension below zero, which older exporters write for one that is not known."""
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in {*graph.inputs, *graph.outputs, *made}:
            sizes = [] if value.shape is None else list(value.shape)
            below = [isinstance(size, int) and size < 0 for size in sizes]
            if any(below):
                known = [None if wrong else size for wrong, size in zip(below, sizes, strict=True)]
                if below[0] and value in model.graph.inputs:
                    known[0] = ir.SymbolicDim(BATCH_DIMENSION)
                value.shape = ir.Shape(known)


def _tensor_bytes(tensor: ir.TensorProtocol) -> bytes:
    """Return the bytes of a tensor; strings with their lengths, so that none runs into another."""
    if tensor.dtype is not ir.DataType.STRING:
        return tensor.tobytes()
    return repr([bytes(each) for each in tensor.numpy().ravel()]).encode()


def _save_external(model: ir.Model, draft: Path) -> str:
    name = f"{draft.stem}-{fingerprint(model)[:8]}.data"
    ir.save(model, draft, external_data=name, size_threshold_bytes=EXTERNAL_THRESHOLD_BYTES)
    return name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
