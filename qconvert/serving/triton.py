"""A Triton model repository: a model's folder with its configuration and one version.

Written from the protocol buffers of Triton's configuration and the source of its ONNX Runtime
backend; no server has loaded one of these yet.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert import backends, onnx_io
from qconvert.backends.outside import Served
from qconvert.errors import UsageError
from qconvert.feeds import TensorSpec
from qconvert.report.markdown import text
from qconvert.serving import preprocess_file
from qconvert.serving.shipment import Shipment

CONFIG, LABELS, README = "config.pbtxt", "labels.txt", "README.md"
# What the model is called in its version's folder.
FILES = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}
TYPES = {
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

START = """\
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

    most: int
    best: int


def write(shipment: Shipment, folder: Path) -> tuple[str, ...]:
    """Write the folder of a model, and return what must be so at the server."""
    served = backends.load(shipment.engine.backend).served(shipment.engine)
    batching = _batching(shipment, served)
    version = folder / "1"
    version.mkdir(parents=True)
    _copy(shipment, served, version)
    config = "\n".join(_config(shipment, served, batching)) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    if shipment.classes:
        lines = "".join(f"{name}\n" for name in shipment.classes)
        (folder / LABELS).write_text(lines, encoding="utf-8")
    if shipment.pictures is not None:
        preprocess_file.write(shipment, folder)
    (folder / README).write_text(_readme(shipment, served, batching), encoding="utf-8")
    return served.notes


def _copy(shipment: Shipment, served: Served, version: Path) -> None:
    source = shipment.engine.folder / served.file
    beside = onnx_io.files(source)[1:] if served.platform == "onnxruntime_onnx" else ()
    shutil.copyfile(source, version / FILES[served.platform])
    for file in beside:
        shutil.copyfile(file, version / file.name)


def _batching(shipment: Shipment, served: Served) -> Batching:
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


def _config(shipment: Shipment, served: Served, batching: Batching) -> Iterator[str]:
    yield f"name: {_quoted(shipment.name)}"
    yield f"platform: {_quoted(served.platform)}"
    yield f"max_batch_size: {batching.most}"
    for spec in shipment.inputs:
        yield from _tensor("input", spec, batching)
    for spec in shipment.outputs:
        labels = LABELS if shipment.classes and spec == shipment.scores else ""
        yield from _tensor("output", spec, batching, labels)
    yield f"instance_group [ {{ count: 1 kind: KIND_{served.device} }} ]"
    if batching.most > 1:
        sizes = ", ".join(map(str, sorted({max(batching.best, 2), batching.most})))
        yield f"dynamic_batching {{ preferred_batch_size: [ {sizes} ] }}"
    for key, value in served.parameters.items():
        quoted = f"string_value: {_quoted(value)}"
        yield f"parameters {{ key: {_quoted(key)} value: {{ {quoted} }} }}"


def _tensor(kind: str, spec: TensorSpec, batching: Batching, labels: str = "") -> Iterator[str]:
    """Yield an input or output; its batch is not listed where the server makes batches."""
    if spec.dtype.name not in TYPES:
        raise UsageError(
            f"Triton has no type for `{spec}`", hint="keep inputs and outputs in float32"
        )
    sizes = spec.shape[1:] if batching.most else spec.shape
    yield f"{kind} {{"
    yield f"  name: {_quoted(spec.name)}"
    yield f"  data_type: {TYPES[spec.dtype.name]}"
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


def _readme(shipment: Shipment, served: Served, batching: Batching) -> str:
    engine = shipment.engine
    plan = served.platform == "tensorrt_plan"
    parts = [
        START.format(
            name=shipment.name,
            what=f"The engine `{engine.backend}-{engine.precision}`",
            gpus="--gpus all " if served.device == "GPU" else "",
            release=text(f"TensorRT {engine.made_with['tensorrt']}")
            if plan
            else f"an ONNX Runtime that reads opset {shipment.opset}",
            inputs=text(", ".join(f"`{spec}`" for spec in shipment.inputs)),
            most=f"at most {batching.most} at once" if batching.most else "a batch at a time",
        )
    ]
    if shipment.pictures is not None:
        parts.append(preprocess_file.told(shipment.pictures))
    parts += [text(f"{note[:1].upper()}{note[1:]}.") + "\n" for note in served.notes]
    return "\n".join(parts)
