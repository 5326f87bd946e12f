"""A Triton model repository: a model's folder with its configuration and one version.

Written from the protocol buffers of Triton's configuration and the source of its ONNX Runtime
backend; no server has loaded one of these yet.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import TritonSpec
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.package import bundle as bundles
from qconvert.package.bundle import Bundle
from qconvert.report.markdown import escape_text

CONFIG, LABELS, README = "config.pbtxt", "labels.txt", "README.md"
# The name of the model in the folder of its version.
MODEL_FILES = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}
TRITON_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


@dataclass(frozen=True)
class Batching:
    """Into how many images the server joins requests; a maximum of 0 turns it off."""

    max_batch_size: int
    preferred_size: int


def write(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Write the folder of a model, and return what the server must provide."""
    spec = backends.load(bundle.engine.backend).triton_spec(bundle.engine)
    batching = _batching(bundle, spec)
    _copy_model(bundle, spec, folder / "1")
    config = "\n".join(config_lines(bundle, spec, batching)) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    bundles.write_class_names(bundle, folder / LABELS)
    if bundle.preparation is not None:
        bundles.write_preprocess_file(bundle.preparation, folder)
    (folder / README).write_text(_readme(bundle, spec, batching), encoding="utf-8")
    return spec.notes


def _copy_model(bundle: Bundle, spec: TritonSpec, version: Path) -> None:
    version.mkdir(parents=True)
    source = bundle.engine.folder / spec.file
    shutil.copyfile(source, version / MODEL_FILES[spec.platform])
    if spec.platform == "onnxruntime_onnx":
        for file in onnx_io.model_files(source)[1:]:
            shutil.copyfile(file, version / file.name)


def _batching(bundle: Bundle, spec: TritonSpec) -> Batching:
    """Return how requests are joined: only if all inputs and outputs have a dynamic batch."""
    tensors = (*bundle.inputs, *bundle.outputs)
    if not all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in tensors):
        return Batching(0, 0)
    smallest, best, largest = spec.profile or (1, *bundle.profile[1:])
    if smallest > 1:
        raise UsageError(
            f"the engine takes no fewer than {smallest} images, and a server runs what comes",
            hint=f"build it again with `--profile 1,{best},{largest}`",
        )
    return Batching(largest, best)


def config_lines(bundle: Bundle, spec: TritonSpec, batching: Batching) -> Iterator[str]:
    """Yield the lines of `config.pbtxt`."""
    yield f"name: {_quote(bundle.name)}"
    yield f"platform: {_quote(spec.platform)}"
    yield f"max_batch_size: {batching.max_batch_size}"
    for tensor in bundle.inputs:
        yield from _tensor_lines("input", tensor, batching)
    for tensor in bundle.outputs:
        labels = LABELS if bundle.classes and tensor == bundle.scores else ""
        yield from _tensor_lines("output", tensor, batching, labels)
    yield f"instance_group [ {{ count: 1 kind: KIND_{spec.device} }} ]"
    if batching.max_batch_size > 1:
        sizes = sorted({max(batching.preferred_size, 2), batching.max_batch_size})
        yield f"dynamic_batching {{ preferred_batch_size: [ {', '.join(map(str, sizes))} ] }}"
    for key, value in spec.parameters.items():
        value_text = f"string_value: {_quote(value)}"
        yield f"parameters {{ key: {_quote(key)} value: {{ {value_text} }} }}"


def _tensor_lines(
    kind: str, tensor: TensorSpec, batching: Batching, labels: str = ""
) -> Iterator[str]:
    """Yield an input or output; its batch is not listed if the server forms batches."""
    if tensor.dtype.name not in TRITON_TYPES:
        raise UsageError(
            f"Triton has no type for `{tensor}`", hint="keep inputs and outputs in float32"
        )
    shape = tensor.shape[1:] if batching.max_batch_size else tensor.shape
    dims = [size if isinstance(size, int) else -1 for size in shape] or [1]
    yield f"{kind} {{"
    yield f"  name: {_quote(tensor.name)}"
    yield f"  data_type: {TRITON_TYPES[tensor.dtype.name]}"
    yield f"  dims: [ {', '.join(map(str, dims))} ]"
    if not shape:
        yield "  reshape: { shape: [ ] }"
    if labels:
        yield f"  label_filename: {_quote(labels)}"
    yield "}"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _readme(bundle: Bundle, spec: TritonSpec, batching: Batching) -> str:
    if spec.platform == "tensorrt_plan":
        release = escape_text(f"TensorRT {bundle.engine.made_with['tensorrt']}")
    else:
        release = f"an ONNX Runtime that reads opset {bundle.opset}"
    size = batching.max_batch_size
    parts = [
        bundles.fill_template(
            "triton.md.tmpl",
            name=bundle.name,
            engine=bundle.variant,
            gpus="--gpus all " if spec.device == "GPU" else "",
            release=release,
            inputs=escape_text(", ".join(f"`{tensor}`" for tensor in bundle.inputs)),
            batching=f"at most {size} at once" if size else "a batch at a time",
        )
    ]
    if bundle.preparation is not None:
        parts.append(bundles.describe_preparation(bundle.preparation))
    parts += [escape_text(f"{note[:1].upper()}{note[1:]}.") + "\n" for note in spec.notes]
    return "\n".join(parts)
