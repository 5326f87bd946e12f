"""Why an ONNX file is refused: what it holds, what it needs beside it, what ONNX says of it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

from qconvert.errors import QConvertError, reason

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
# The fields of a tensor that hold text; the others are its numbers, which may be many.
TEXTS = ("name", "doc_string", "external_data")


def not_onnx(path: Path, why: str) -> QConvertError:
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
        raise not_onnx(path, "it holds no graph with an output")
    _require_text(proto, path)
    _require_known_opset(proto, path)
    for graph in _graphs(proto.graph):
        if graph.sparse_initializer:
            raise QConvertError(
                f"`{path}` stores `{graph.sparse_initializer[0].values.name}` as a sparse tensor, "
                "which is not supported",
                hint="export it with dense weights",
            )
        for tensor in graph.initializer:
            _require_places(tensor, path)
    _require_types(proto, path)


def require_external(tensors: Iterable[ir.TensorProtocol], path: Path) -> None:
    """Refuse weights stored in other files unless those lie beside the model, and are whole."""
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            _require_file(tensor, path)


def require_known(nodes: Iterable[ir.Node], functions: Iterable[ir.Function], path: Path) -> None:
    """Refuse operators that neither ONNX nor the model itself defines."""
    defined = {(function.domain, function.name) for function in functions}
    strange = {
        f"{node.domain or 'ai.onnx'}::{node.op_type}"
        for node in nodes
        if (node.domain, node.op_type) not in defined and not _is_known(node)
    }
    if strange:
        shown = ", ".join(f"`{name}`" for name in sorted(strange)[:5])
        raise QConvertError(
            f"`{path}` uses operators that are not in ONNX: {shown}",
            hint="export without custom operators, or cut the graph before them "
            "and run the rest outside",
        )


def require_valid(path: Path) -> None:
    """Refuse a file that breaks the rules of ONNX."""
    try:
        onnx.checker.check_model(_checkable(path))
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        why = reason(error)
        if _is_unnameable(path) and "should be stored in" in why:
            raise QConvertError(
                f"the weights beside `{path}`, whose name is not UTF-8, cannot be found",
                hint="rename the file or its folder",
            ) from None
        raise QConvertError(
            f"`{path}` is not a valid ONNX model: {why}",
            hint="export it again; `python -m onnx.checker` shows the same complaint",
        ) from None


def _checkable(path: Path) -> Path | bytes:
    """Return what the checker takes: the path, which finds the weights beside it, or the bytes."""
    return path.read_bytes() if _is_unnameable(path) else path


def _is_unnameable(path: Path) -> bool:
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


def _require_types(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors of no type, stored ones and those that a node brings."""
    graphs = list(_graphs(proto.graph))
    held = [tensor for graph in graphs for tensor in graph.initializer]
    nodes = (node for part in (*graphs, *proto.functions) for node in part.node)
    given = (each for node in nodes for each in node.attribute)
    held += [each.t for each in given if each.type == onnx.AttributeProto.TENSOR]
    for tensor in held:
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise not_onnx(path, f"its tensor `{tensor.name}` has no type")


def _require_text(message: Message, path: Path) -> None:
    """Refuse text that is not UTF-8, which comes as bytes and which nothing can write again."""
    for field, value in message.ListFields():
        if isinstance(message, onnx.TensorProto) and field.name not in TEXTS:
            continue
        held = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in held:
                _require_text(each, path)
        elif field.type == FieldDescriptor.TYPE_STRING and bytes in map(type, held):
            raise not_onnx(path, f"`{field.name}` of its {message.DESCRIPTOR.name} is not UTF-8")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _require_places(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse a place in a data file that is no number, and a file that no system can have."""
    for entry in tensor.external_data:
        if "\0" in entry.value:
            raise not_onnx(
                path, f"the {entry.key} of the data of `{tensor.name}` holds a zero byte"
            )
        if entry.key in ("offset", "length") and not entry.value.isdecimal():
            raise QConvertError(
                f"`{path}` says `{tensor.name}` has {entry.key} `{entry.value}` in its data file, "
                "which is not a count of bytes",
                hint="export the model again",
            )


def _require_file(tensor: ir.ExternalTensor, path: Path) -> None:
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


def _is_known(node: ir.Node) -> bool:
    if node.domain in ("", "ai.onnx"):
        return bool(onnx.defs.has(node.op_type))
    return node.domain in KNOWN_DOMAINS
