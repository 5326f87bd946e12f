"""A Triton model repository: a model's folder with its configuration and one version.

Written from the protocol buffers of Triton's configuration and the source of its ONNX Runtime
backend; no server has loaded one of these yet.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import TritonSpec
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.package import bundle
from qconvert.package.bundle import Bundle
from qconvert.report.markdown import escape_text

CONFIG, LABELS, README = "config.pbtxt", "labels.txt", "README.md"
# What the model is called in its version's folder.
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

README_TEXT = """\
# {name} for Triton

{what}. Start the server in the folder that holds `{name}/`:

```sh
docker run --rm {gpus}-p 8000:8000 -v "$PWD:/models:ro" \\
    nvcr.io/nvidia/tritonserver:RELEASE-py3 tritonserver --model-repository=/models
curl localhost:8000/v2/models/{name}/config
```

RELEASE is one of Triton, as 25.09, with {release}. The server takes {inputs}, {most}.
"""


@dataclass(frozen=True)
class Batching:
    """Whether the server joins requests, and into how many images at most; 0 is not at all."""

    max_batch_size: int
    preferred_size: int


def write(shipment: Bundle, folder: Path) -> tuple[str, ...]:
    """Write the folder of a model, and return what must be so at the server."""
    served = backends.load(shipment.engine.backend).triton_spec(shipment.engine)
    batching = _batching(shipment, served)
    version = folder / "1"
    version.mkdir(parents=True)
    _copy_model(shipment, served, version)
    config = "\n".join(_config_lines(shipment, served, batching)) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    if shipment.classes:
        lines = "".join(f"{name}\n" for name in shipment.classes)
        (folder / LABELS).write_text(lines, encoding="utf-8")
    if shipment.preparation is not None:
        bundle.write_preprocess_file(shipment, folder)
    (folder / README).write_text(_readme(shipment, served, batching), encoding="utf-8")
    return served.notes


def _copy_model(shipment: Bundle, served: TritonSpec, version: Path) -> None:
    source = shipment.engine.folder / served.file
    beside = onnx_io.model_files(source)[1:] if served.platform == "onnxruntime_onnx" else ()
    shutil.copyfile(source, version / MODEL_FILES[served.platform])
    for file in beside:
        shutil.copyfile(file, version / file.name)


def _batching(shipment: Bundle, served: TritonSpec) -> Batching:
    """Return how requests are joined: only where all inputs and outputs have an open batch."""
    specs = (*shipment.inputs, *shipment.outputs)
    if not all(spec.shape and isinstance(spec.shape[0], str) for spec in specs):
        return Batching(0, 0)
    least, best, most = served.profile or (1, *shipment.profile[1:])
    if least > 1:
        raise UsageError(
            f"the engine takes no fewer than {least} images, and a server runs what comes",
            hint=f"build it again with `--profile 1,{best},{most}`",
        )
    return Batching(most, best)


def _config_lines(shipment: Bundle, served: TritonSpec, batching: Batching) -> Iterator[str]:
    yield f"name: {_quoted(shipment.name)}"
    yield f"platform: {_quoted(served.platform)}"
    yield f"max_batch_size: {batching.max_batch_size}"
    for spec in shipment.inputs:
        yield from _tensor_lines("input", spec, batching)
    for spec in shipment.outputs:
        labels = LABELS if shipment.classes and spec == shipment.scores else ""
        yield from _tensor_lines("output", spec, batching, labels)
    yield f"instance_group [ {{ count: 1 kind: KIND_{served.device} }} ]"
    if batching.max_batch_size > 1:
        sizes = ", ".join(
            map(str, sorted({max(batching.preferred_size, 2), batching.max_batch_size}))
        )
        yield f"dynamic_batching {{ preferred_batch_size: [ {sizes} ] }}"
    for key, value in served.parameters.items():
        quoted = f"string_value: {_quoted(value)}"
        yield f"parameters {{ key: {_quoted(key)} value: {{ {quoted} }} }}"


def _tensor_lines(
    kind: str, spec: TensorSpec, batching: Batching, labels: str = ""
) -> Iterator[str]:
    """Yield an input or output; its batch is not listed where the server makes batches."""
    if spec.dtype.name not in TRITON_TYPES:
        raise UsageError(
            f"Triton has no type for `{spec}`", hint="keep inputs and outputs in float32"
        )
    sizes = spec.shape[1:] if batching.max_batch_size else spec.shape
    yield f"{kind} {{"
    yield f"  name: {_quoted(spec.name)}"
    yield f"  data_type: {TRITON_TYPES[spec.dtype.name]}"
    yield f"  dims: [ {', '.join(map(str, _dims(sizes) or [1]))} ]"
    if not sizes:
        yield "  reshape: { shape: [ ] }"
    if labels:
        yield f"  label_filename: {_quoted(labels)}"
    yield "}"


def _dims(sizes: Sequence[int | str]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in sizes]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _readme(shipment: Bundle, served: TritonSpec, batching: Batching) -> str:
    engine = shipment.engine
    plan = served.platform == "tensorrt_plan"
    parts = [
        README_TEXT.format(
            name=shipment.name,
            what=f"The engine `{engine.backend}-{engine.precision}`",
            gpus="--gpus all " if served.device == "GPU" else "",
            release=escape_text(f"TensorRT {engine.made_with['tensorrt']}")
            if plan
            else f"an ONNX Runtime that reads opset {shipment.opset}",
            inputs=escape_text(", ".join(f"`{spec}`" for spec in shipment.inputs)),
            most=f"at most {batching.max_batch_size} at once"
            if batching.max_batch_size
            else "a batch at a time",
        )
    ]
    if shipment.preparation is not None:
        parts.append(bundle.describe_preparation(shipment.preparation))
    parts += [escape_text(f"{note[:1].upper()}{note[1:]}.") + "\n" for note in served.notes]
    return "\n".join(parts)
