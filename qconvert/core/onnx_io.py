"""Read and write ONNX files, completely or not at all; files that are read are untrusted."""

import hashlib
import re
from collections.abc import Iterator
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

# Protobuf is limited to 2 GiB; the graph needs some room beside the weights.
SINGLE_FILE_BYTES = 2**31 - 2**27
# A model passed as bytes is in memory several times until a session has read it.
IN_MEMORY_BYTES = 2**28
EXTERNAL_THRESHOLD_BYTES = 1024

CONTRIB_DOMAINS = ("ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
TENSOR_TEXT_FIELDS = ("name", "doc_string", "external_data")


def load(path: Path) -> ir.Model:
    """Read an ONNX file; inputs with a default become constants, and weights are read on use."""
    _require_file(path)
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        raise _not_onnx(path, first_line(error)) from None
    _require_readable(proto, path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many types for graphs that contradict themselves
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer errors only say where
            cause = cause.__cause__
        raise _not_onnx(path, f"its graph cannot be read: {first_line(cause)}") from None
    external_data.set_base_dir(model.graph, path.parent)
    for tensor in all_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _require_external_tensor(tensor, path)
    _require_known_operators(model, path)
    _require_valid_file(path)
    free = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    model.graph.inputs[:] = free
    if model.ir_version < 4:  # there, files had to list initializers as inputs too
        model.ir_version = 10
    _replace_negative_dimensions(model)
    return model


def save(model: ir.Model, path: Path, *, external: bool = False) -> None:
    """Write a model; if it is large or `external`, with a data file named after its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with attach_path(path), atomic.temporary_folder(path.parent) as folder:
        draft = folder / path.name
        if not external and weight_bytes(model) < SINGLE_FILE_BYTES:
            # Not `ir.save`: it would leave external tensors outside the file.
            draft.write_bytes(serialize(model))
        else:
            name = f"{draft.stem}-{fingerprint(model)[:8]}.data"
            ir.save(model, draft, external_data=name, size_threshold_bytes=EXTERNAL_THRESHOLD_BYTES)
            (folder / name).replace(path.parent / name)
        outdated = model_files(path)[1:]
        draft.replace(path)
        for old in set(outdated) - set(model_files(path)):
            old.unlink(missing_ok=True)


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a saved model: itself, then the data file that `save` put beside it."""
    pattern = re.compile(re.escape(path.stem) + r"-[0-9a-f]{8}\.data")
    if not path.is_file():
        return (path,)
    data_files = [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
    content = path.read_bytes() if data_files else b""
    return (path, *sorted(file for file in data_files if file.name.encode() in content))


def saved_bytes(path: Path) -> int:
    """Return the size of a saved model, external data included."""
    return sum(file.stat().st_size for file in model_files(path))


def serialize(model: ir.Model) -> bytes:
    """Return a model below 2 GB as bytes, weights included; equal models give equal bytes."""
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in all_tensors(model)):
        model = external_data.load_to_model(model.clone())
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def fingerprint(model: ir.Model) -> str:
    """Return the sha256 of graph and weights, wherever they are stored, without the metadata."""
    bare = model.clone()
    bare.metadata_props.clear()
    try:
        text = ir.to_onnx_text(bare, exclude_initializers=True)
    except onnx.shape_inference.InferenceError as error:  # the ONNX checker does not see this
        raise QConvertError(
            f"the model holds an incomplete tensor: {first_line(error)}", hint="export it again"
        ) from None
    digest = hashlib.sha256(text.encode())
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            tensor = value.const_value
            if tensor is not None and tensor.dtype is ir.DataType.STRING:
                # With quotes, so that no string runs into the next.
                digest.update(repr([bytes(text) for text in tensor.numpy().ravel()]).encode())
            elif tensor is not None:
                digest.update(tensor.tobytes())
    return digest.hexdigest()


def require_valid(model: ir.Model) -> None:
    """Refuse a model that breaks the rules of ONNX; models above 2 GB are not checked."""
    if weight_bytes(model) >= SINGLE_FILE_BYTES:
        return
    try:
        onnx.checker.check_model(serialize(model))
    except onnx.checker.ValidationError as error:
        raise QConvertError(
            f"the cleaned model is not valid ONNX: {first_line(error)}",
            hint="`--skip` leaves out a pass; please report the model and this message",
        ) from None


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all tensors in the model."""
    return sum(tensor.nbytes for tensor in all_tensors(model))


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every initializer and tensor attribute, those of subgraphs and functions too."""
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
    """Return the specs of the inputs that a caller must provide."""
    constants = model.graph.initializers
    return tuple(tensor_spec(value) for value in model.graph.inputs if value.name not in constants)


def outputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return the specs of the outputs."""
    return tuple(tensor_spec(value) for value in model.graph.outputs)


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Return name, element type and shape of a value."""
    shape = tuple(
        size if isinstance(size, int) else str(size.value or "") for size in value.shape or ()
    )
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    return TensorSpec(value.name or "", dtype, shape)


def _replace_negative_dimensions(model: ir.Model) -> None:
    """Make negative dimensions dynamic: older exporters write them for unknown sizes."""
    for graph in model.graphs():
        node_outputs = (value for node in graph for value in node.outputs)
        for value in {*graph.inputs, *graph.outputs, *node_outputs}:
            shape = list(value.shape or ())
            for axis, size in enumerate(shape):
                if isinstance(size, int) and size < 0:
                    is_batch = axis == 0 and value in model.graph.inputs
                    shape[axis] = ir.SymbolicDim("batch" if is_batch else None)
                    value.shape = ir.Shape(shape)


# --- checks of untrusted files ---


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(
            f"`{path}` is a folder, not an ONNX file", hint="name the .onnx file inside it"
        )
    if not path.exists():
        others = ", ".join(f"`{other}`" for other in sorted(path.parent.glob("*.onnx"))[:3])
        hint = "check the path; relative paths start at the working folder"
        raise UsageError(f"`{path}` does not exist", hint=f"there is {others}" if others else hint)
    if path.stat().st_size == 0:
        raise QConvertError(f"`{path}` is empty", hint="export or copy the model again")


def _not_onnx(path: Path, reason: str) -> QConvertError:
    """Return the error for a file that cannot be read, with what the file is instead."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return QConvertError(
            f"`{path}` is a Git LFS pointer, not the model", hint="run `git lfs pull`"
        )
    if start and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        reason = "it is a text file"
    return QConvertError(
        f"`{path}` is not an ONNX model: {reason}",
        hint="an ONNX file is binary protobuf; an incomplete download also causes this error",
    )


def _require_readable(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse what the graph library reads wrongly or not at all."""
    if not proto.HasField("graph") or not proto.graph.output:
        raise _not_onnx(path, "it contains no graph with an output")
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise QConvertError(
                f"`{path}` has opset {opset.version}; the installed onnx package knows opsets up "
                f"to {newest}",
                hint=f"`pip install -U onnx`, or export it with opset {newest} or older",
            )
    _require_readable_parts(proto, path)


def _require_readable_parts(message: Message, path: Path) -> None:
    """Refuse, at any depth, text that is not UTF-8, sparse tensors and incomplete tensors."""
    for field, value in message.ListFields():
        # The other fields of a tensor are numbers, possibly many.
        if isinstance(message, onnx.TensorProto) and field.name not in TENSOR_TEXT_FIELDS:
            continue
        values = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in values:
                _require_readable_parts(inner, path)
        # Protobuf reads text that is not UTF-8 as bytes, and nothing can write it again.
        elif field.type == FieldDescriptor.TYPE_STRING and bytes in map(type, values):
            raise _not_onnx(path, f"`{field.name}` of its {message.DESCRIPTOR.name} is not UTF-8")
    if isinstance(message, onnx.TensorProto):
        for entry in message.external_data:
            if "\0" in entry.value:
                reason = f"the {entry.key} of the data of `{message.name}` holds a zero byte"
                raise _not_onnx(path, reason)
            if entry.key in ("offset", "length") and not entry.value.isdecimal():
                raise QConvertError(
                    f"`{path}` gives `{message.name}` the {entry.key} `{entry.value}` in its data "
                    "file, which is not a number of bytes",
                    hint="export the model again",
                )
        if message.data_type == onnx.TensorProto.UNDEFINED:
            raise _not_onnx(path, f"its tensor `{message.name}` has no type")
    if isinstance(message, onnx.GraphProto) and message.sparse_initializer:
        raise QConvertError(
            f"`{path}` stores `{message.sparse_initializer[0].values.name}` as a sparse tensor, "
            "which is not supported",
            hint="export it with dense weights",
        )


def _require_external_tensor(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse weights in a file that is not beside the model, or does not hold all of them."""
    file = path.parent / tensor.location
    inside = file.resolve().is_relative_to(path.parent.resolve())
    if Path(tensor.location).is_absolute() or not inside:
        raise QConvertError(
            f"`{path}` stores weights outside its own folder: `{tensor.location}`",
            hint="copy the data file beside the model and save it with a relative location",
        )
    if not file.is_file():
        raise QConvertError(
            f"`{path}` needs `{tensor.location}`, which is not beside it",
            hint="a model with external data consists of several files; copy all of them",
        )
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise QConvertError(
            f"`{path}` stores {tensor.length} bytes for `{tensor.name}`, "
            f"which needs {tensor.nbytes}",
            hint="export the model again",
        )
    if file.stat().st_size < (tensor.offset or 0) + (tensor.length or tensor.nbytes):
        raise QConvertError(
            f"`{file}` is too short for the weights of `{path}`",
            hint="copy both files again; they must come from the same export",
        )


def _require_known_operators(model: ir.Model, path: Path) -> None:
    defined = {(function.domain, function.name) for function in model.functions.values()}
    unknown = set()
    for node in all_nodes(model):
        is_onnx = node.domain in ("", "ai.onnx")
        is_known = onnx.defs.has(node.op_type) if is_onnx else node.domain in CONTRIB_DOMAINS
        if not is_known and (node.domain, node.op_type) not in defined:
            unknown.add(f"`{node.domain or 'ai.onnx'}::{node.op_type}`")
    if unknown:
        raise QConvertError(
            f"`{path}` uses operators that are not in ONNX: {', '.join(sorted(unknown)[:5])}",
            hint="export without custom operators, or cut the graph before them "
            "and run the rest outside",
        )


def _require_valid_file(path: Path) -> None:
    # Given a path, the checker finds the weights beside it, but it takes only UTF-8 paths.
    try:
        str(path).encode()
        checked: Path | bytes = path
    except UnicodeEncodeError:
        checked = path.read_bytes()
    try:
        onnx.checker.check_model(checked)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = first_line(error)
        if isinstance(checked, bytes) and "should be stored in" in reason:
            raise QConvertError(
                f"the weights beside `{path}` cannot be found: its name is not UTF-8",
                hint="rename the file or its folder",
            ) from None
        raise QConvertError(
            f"`{path}` is not a valid ONNX model: {reason}",
            hint="export it again; `python -m onnx.checker` shows the same error",
        ) from None
