"""ONNX files in and out: refused with a reason, or whole; written whole, or not at all."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir import external_data

from qconvert.errors import QConvertError, UsageError, reason
from qconvert.feeds import TensorSpec

# Protobuf cannot hold 2 GiB; what is not weights needs some room beside them.
SINGLE_FILE_BYTES = 2**31 - 2**27
KEEP_INSIDE_BYTES = 1024

KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}


def load(path: Path) -> ir.Model:
    """Read an ONNX file; its external data stays on disk until it is used."""
    _require_file(path)
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        raise _not_onnx(path, reason(error)) from None
    if not proto.HasField("graph") or not proto.graph.output:
        raise _not_onnx(path, "it holds no graph with an output")
    model = _deserialize(proto, path)
    external_data.set_base_dir(model.graph, path.parent)
    _check_external(model, path)
    _check_operators(model, path)
    _check(path)
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write one file, or above 2 GB one file and its data beside it; complete when it appears.

    The data file carries its hash in its name, so a model file never points at another's data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / path.name
        if weight_bytes(model) < SINGLE_FILE_BYTES:
            # Written here rather than by `ir.save`, which would leave external tensors outside.
            draft.write_bytes(serialize(model))
        else:
            name = _save_external(model, draft)
            (Path(folder) / name).replace(path.parent / name)
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
    inside = external_data.load_to_model(model.clone())
    return bytes(ir.to_proto(inside).SerializeToString(deterministic=True))


def from_bytes(content: bytes) -> ir.Model:
    """Return the model that `serialize` wrote."""
    return ir.from_proto(onnx.load_from_string(content))


def fingerprint(model: ir.Model) -> str:
    """Return the sha256 of graph and weights, wherever they are stored, without the metadata."""
    bare = model.clone()
    bare.metadata_props.clear()
    digest = hashlib.sha256(ir.to_onnx_text(bare, exclude_initializers=True).encode())
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                digest.update(value.const_value.tobytes())
    return digest.hexdigest()


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


def _not_onnx(path: Path, why: str) -> QConvertError:
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


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many kinds for graphs that contradict themselves
        raise _not_onnx(path, f"its graph cannot be read: {reason(error)}") from None


def _check_external(model: ir.Model, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = path.parent / tensor.location
        if Path(tensor.location).is_absolute() or not place.resolve().is_relative_to(folder):
            raise QConvertError(
                f"`{path}` keeps weights outside its own folder: `{tensor.location}`",
                hint="copy the data file beside the model and save it with a relative location",
            )
        if not place.is_file():
            raise QConvertError(
                f"`{path}` needs `{tensor.location}`, which is not beside it",
                hint="a model with external data is two or more files; copy all of them",
            )
        if place.stat().st_size < (tensor.offset or 0) + (tensor.length or 0):
            raise QConvertError(
                f"`{place}` is too short for the weights that `{path}` expects in it",
                hint="copy both files again; they must come from the same save",
            )


def _check_operators(model: ir.Model, path: Path) -> None:
    defined = {identifier[:2] for identifier in model.functions}
    strange = {
        f"{node.domain or 'ai.onnx'}::{node.op_type}"
        for node in nodes(model)
        if (node.domain, node.op_type) not in defined and not _is_known(node)
    }
    if strange:
        shown = ", ".join(f"`{name}`" for name in sorted(strange)[:5])
        raise QConvertError(
            f"`{path}` uses operators that are not in ONNX: {shown}",
            hint="export without custom operators, or cut the graph before them "
            "and run the rest outside",
        )


def _is_known(node: ir.Node) -> bool:
    if node.domain in ("", "ai.onnx"):
        return bool(onnx.defs.has(node.op_type))
    return node.domain in KNOWN_DOMAINS


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise QConvertError(
            f"`{path}` is not a valid ONNX model: {reason(error)}",
            hint="export it again; `python -m onnx.checker` shows the same complaint",
        ) from None


def _save_external(model: ir.Model, draft: Path) -> str:
    name = f"{draft.stem}-{fingerprint(model)[:8]}.data"
    ir.save(model, draft, external_data=name, size_threshold_bytes=KEEP_INSIDE_BYTES)
    return name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
