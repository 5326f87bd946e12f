"""Load an ONNX file: its own reference, with the input shapes the user asked for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert.backends.crash_check import check_for_crash
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec, fixed_batch, parse_spec, random_inputs, resolve_specs
from qconvert.graph.clean import describe_difference
from qconvert.graph.passes import infer_shapes
from qconvert.images.preprocess import Preprocess
from qconvert.sources import Source

# The metadata key under which an export stores the preprocessing of images.
PREPROCESS_KEY = "qconvert.preprocess"
# How much the output of one image may change with the rest of its batch, relative to the largest.
ROW_TOLERANCE = 1e-3

Specs = tuple[TensorSpec, ...]


def load(source: str, export: ExportConfig, trust: bool) -> Source:
    """Load an ONNX file; `inputs` and `batch` set dimensions, everything else stays as it is."""
    path = Path(source)
    model = onnx_io.load(path)
    if export.weights is not None:
        raise UsageError(f"`{source}` contains its weights", hint="leave out `--weights`")
    original_specs = onnx_io.inputs(model)
    # With `--batch`, the first size of an `--input` does not matter.
    batch_free = original_specs if export.batch is None else set_batch(original_specs, "dynamic")
    specs = resolve_specs(batch_free, [parse_spec(text) for text in export.inputs])
    specs = set_batch(specs, export.batch)
    if specs != original_specs:
        original, model = model, set_input_shapes(model, specs)
        if fixed_batch(specs) != fixed_batch(original_specs):
            reason = _find_batch_dependence(original, original_specs, model, specs)
            if reason:
                raise QConvertError(
                    f"`{source}` cannot run with another batch size: its graph depends on it",
                    hint="leave out `--batch`, or export the model again with that batch size",
                    details=[reason],
                )
    preprocess = None
    if (text := model.metadata_props.get(PREPROCESS_KEY)) is not None:
        try:
            preprocess = Preprocess.from_dict(json.loads(text))
        except (ValueError, TypeError):
            hint = "export the model again"
            raise UsageError(
                f"the model's metadata `{PREPROCESS_KEY}` is damaged", hint=hint
            ) from None
    return Source(path.stem, model, specs, preprocess=preprocess)


def set_batch(specs: Specs, batch: str | int | None) -> Specs:
    """Open or fix the first dimension of every input that shares it with the first input."""
    if batch is None or not specs or not specs[0].shape:
        return specs
    size = "batch" if batch == "dynamic" else int(batch)
    first = specs[0].shape[0]
    if batch == "dynamic" and isinstance(first, str):
        return specs
    return tuple(
        replace(spec, shape=(size, *spec.shape[1:])) if spec.shape[:1] == (first,) else spec
        for spec in specs
    )


def set_input_shapes(model: ir.Model, specs: Specs) -> ir.Model:
    """Return a copy with these input shapes, and with all other shapes inferred from them."""
    model = model.clone()
    by_name = {spec.name: spec for spec in specs}
    for value in model.graph.inputs:
        if spec := by_name.get(value.name or ""):
            value.shape = ir.Shape(spec.shape)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            # Outputs of the graph must have a shape: they keep their rank.
            rank = value.shape.rank() if value.is_graph_output() and value.shape else None
            value.shape = None if rank is None else ir.Shape([None] * rank)
    return infer_shapes(model)[0]


def _find_batch_dependence(
    original: ir.Model, original_specs: Specs, changed: ir.Model, specs: Specs
) -> str:
    """Describe how the outputs for an image depend on the batch size; empty if they do not.

    A batch of the changed graph is run again through the original, in chunks of its own batch, the
    last one filled up with the first images.
    """
    before, after = fixed_batch(original_specs) or 1, fixed_batch(specs)
    count = after or (2 if before != 2 else 3)
    if count == before:
        return ""  # a dynamic batch that becomes 1, which stands for the dynamic batch here
    feeds = random_inputs(specs, count, seed=0)
    chunks = (np.arange(-(-count // before) * before) % count).reshape(-1, before)
    batched = {
        new.name
        for old, new in zip(original_specs, specs, strict=True)
        if old.shape[:1] != new.shape[:1]
    }
    parts = [
        {name: array[chunk] if name in batched else array for name, array in feeds.items()}
        for chunk in chunks
    ]
    check_for_crash(original, parts[0])
    check_for_crash(changed, feeds)
    run_original = open_cpu(original)
    try:
        outputs = open_cpu(changed)(feeds)
    except QConvertError as error:
        return str(error)
    for chunk, part in zip(chunks, parts, strict=True):
        expected = run_original(part)
        for name in outputs:
            # ONNX Runtime may return a sequence of tensors, which has no shape.
            sizes = [getattr(tensors[name], "shape", ())[:1] for tensors in (expected, outputs)]
            if sizes != [(before,), (count,)]:
                return f"the first axis of `{name}` does not follow the batch"
        rows = {name: array[chunk] for name, array in outputs.items()}
        if difference := describe_difference(expected, rows, ROW_TOLERANCE):
            return f"in another batch {difference}"
    return ""
