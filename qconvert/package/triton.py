"""A Triton model repository: a model's folder with its configuration and one version.

Written from the protocol buffers of Triton's configuration and the source of its ONNX Runtime
backend; not tested with a server yet.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import TritonSpec
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.package import bundle as bundles
from qconvert.package.bundle import Bundle
from qconvert.report.markdown import escape_text
from qconvert.tasks.decoders import MASK_LAYOUTS
from qconvert.tasks.script import decoder_source

LABELS, DECODER_FILE = "labels.txt", "decode.py"
DECODER_DOCSTRING = '"""Read the outputs with NumPy alone: `decode(outputs, size)`."""\n\n'
# NumPy types that Triton supports; it calls float32 TYPE_FP32.
TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def write(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Write the folder of a model, and return what the server must provide."""
    spec = backends.load(bundle.engine.backend).triton_spec(bundle.engine)
    # The server batches requests only if all inputs and outputs have a dynamic batch.
    max_batch = best_batch = 0
    tensors = (*bundle.inputs, *bundle.outputs)
    if not has_object_rows(bundle) and all(
        tensor.shape and isinstance(tensor.shape[0], str) for tensor in tensors
    ):
        smallest, best_batch, max_batch = spec.profile or (1, *bundle.profile[1:])
        if smallest > 1:
            raise UsageError(
                f"the engine needs at least {smallest} images, but a server runs single requests",
                hint=f"build it again with `--profile 1,{best_batch},{max_batch}`",
            )
    version = folder / "1"
    version.mkdir(parents=True)
    model = bundle.engine.folder / spec.file
    if spec.platform == "onnxruntime_onnx":
        shutil.copyfile(model, version / "model.onnx")
        for file in onnx_io.model_files(model)[1:]:
            shutil.copyfile(file, version / file.name)
    else:
        shutil.copyfile(model, version / "model.plan")
    config = "\n".join(config_lines(bundle, spec, max_batch, best_batch)) + "\n"
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    if spec.platform == "tensorrt_plan":
        release = escape_text(f"TensorRT {bundle.engine.made_with['tensorrt']}")
    else:
        release = f"an ONNX Runtime that reads opset {bundle.opset}"
    if bundle.head is not None:
        source = DECODER_DOCSTRING + decoder_source(bundle.head)
        (folder / DECODER_FILE).write_text(source, encoding="utf-8")
    bundles.write_documents(
        bundle,
        folder,
        "triton.md.tmpl",
        LABELS,
        spec.notes,
        gpus="--gpus all " if spec.device == "GPU" else "",
        release=release,
        inputs=escape_text(", ".join(f"`{tensor}`" for tensor in bundle.inputs)),
        reading=reading_text(bundle),
        batching=f"at most {max_batch} at once" if max_batch else "one batch at a time",
    )
    return spec.notes


def has_object_rows(bundle: Bundle) -> bool:
    """Return whether the first axis of an output is objects, so that a batch cannot be split."""
    if bundle.head is None:
        return False
    ranks = {spec.name: len(spec.shape) for spec in bundle.outputs}
    is_list = bundle.head.layout == "object_lists" and ranks[bundle.head.outputs[0]] == 2
    return is_list or bundle.head.layout in ("indexed_rows", "nms_indices")


def reading_text(bundle: Bundle) -> str:
    """Return how a client reads boxes or masks from the outputs; empty where it has none."""
    if bundle.head is None or bundle.preparation is None:
        return ""
    image_input = bundle.preparation[1]
    size = f"({image_input.width}, {image_input.height})"
    if bundle.head.layout in MASK_LAYOUTS:
        result = "the class of each pixel"
    else:
        result = "the boxes, scores and classes of its objects, in pixels of the input"
    return (
        f"\n`decode(outputs, {size})` of `{DECODER_FILE}`, which needs NumPy alone, takes the "
        f"outputs by name and returns for each image {result}.\n"
    )


def config_lines(
    bundle: Bundle, spec: TritonSpec, max_batch: int, best_batch: int
) -> Iterator[str]:
    """Yield the lines of `config.pbtxt`."""
    yield f"name: {_quote(bundle.name)}"
    yield f"platform: {_quote(spec.platform)}"
    yield f"max_batch_size: {max_batch}"
    kinds = [("input", tensor) for tensor in bundle.inputs]
    for kind, tensor in [*kinds, *(("output", tensor) for tensor in bundle.outputs)]:
        dtype = tensor.dtype.name
        if dtype not in TYPES:
            raise UsageError(
                f"Triton has no type for `{tensor}`", hint="keep inputs and outputs in float32"
            )
        # The batch is not listed if the server forms batches.
        shape = tensor.shape[1:] if max_batch else tensor.shape
        dims = [size if isinstance(size, int) else -1 for size in shape] or [1]
        yield f"{kind} {{"
        yield f"  name: {_quote(tensor.name)}"
        yield f"  data_type: TYPE_{dtype.replace('float', 'fp').upper()}"
        yield f"  dims: [ {', '.join(map(str, dims))} ]"
        if not shape:
            yield "  reshape: { shape: [ ] }"
        if kind == "output" and bundle.classes and tensor == bundle.scores:
            yield f"  label_filename: {_quote(LABELS)}"
        yield "}"
    yield f"instance_group [ {{ count: 1 kind: KIND_{spec.device} }} ]"
    if max_batch > 1:
        sizes = sorted({max(best_batch, 2), max_batch})
        yield f"dynamic_batching {{ preferred_batch_size: [ {', '.join(map(str, sizes))} ] }}"
    for key, value in spec.parameters.items():
        value_text = f"string_value: {_quote(value)}"
        yield f"parameters {{ key: {_quote(key)} value: {{ {value_text} }} }}"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
