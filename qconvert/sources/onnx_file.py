"""An ONNX file as a source: its own reference, with the shapes the user asked for."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert.backends.crash_check import check_for_crash
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec, fixed_batch, parse_spec, random_inputs, resolve_specs
from qconvert.graph.equivalence import describe_difference
from qconvert.graph.simplify import infer_shapes
from qconvert.images.preprocess import Preprocess
from qconvert.sources import Source

# Where an exported file says what is done to a picture before it goes in.
PREPROCESS_KEY = "qconvert.preprocess"
# How far an image's answer may move, as a share of the largest, when its neighbours change.
ROW_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ShapedModel:
    """A model and what it is fed."""

    model: ir.Model
    specs: tuple[TensorSpec, ...]


def load(source: str, export: ExportConfig, trust: bool) -> Source:
    """Read an ONNX file; `inputs` and `batch` set dimensions, everything else stays as it is."""
    path = Path(source)
    model = onnx_io.load(path)
    if export.weights is not None:
        raise UsageError(f"`{source}` brings its weights", hint="leave out `--weights`")
    stored = onnx_io.inputs(model)
    # Where `batch` says the batch, the first number of an input need not say it again.
    open_specs = stored if export.batch is None else set_batch(stored, "dynamic")
    specs = resolve_specs(open_specs, [parse_spec(given) for given in export.inputs])
    specs = set_batch(specs, export.batch)
    if specs != stored:
        original, model = model, set_input_shapes(model, specs)
        if fixed_batch(specs) != fixed_batch(stored):
            _require_free_batch(source, ShapedModel(original, stored), ShapedModel(model, specs))
    return Source(path.stem, model, specs, preprocess=_preprocess(model))


def _preprocess(model: ir.Model) -> Preprocess | None:
    """Return what an earlier export wrote into the file."""
    stored = model.metadata_props.get(PREPROCESS_KEY)
    if stored is None:
        return None
    try:
        return Preprocess.from_dict(json.loads(stored))
    except (ValueError, TypeError):
        raise UsageError(
            f"the model's metadata `{PREPROCESS_KEY}` is damaged", hint="export the model again"
        ) from None


def _require_free_batch(source: str, original: ShapedModel, changed: ShapedModel) -> None:
    """Refuse a graph that answers otherwise for an image when the batch has another size."""
    before, after = fixed_batch(original.specs) or 1, fixed_batch(changed.specs)
    count = after or (2 if before != 2 else 3)
    if count == before:
        return  # an open batch that becomes 1, which is what an open one is compared with
    feeds = random_inputs(changed.specs, count, seed=0)
    # The original takes images in its own number, from the start again after the last one.
    chunks = (np.arange(-(-count // before) * before) % count).reshape(-1, before)
    pairs = zip(original.specs, changed.specs, strict=True)
    follows = {new.name for old, new in pairs if old.shape[:1] != new.shape[:1]}
    first = {name: each[chunks[0]] if name in follows else each for name, each in feeds.items()}
    check_for_crash(original.model, first)
    check_for_crash(changed.model, feeds)
    run = open_cpu(original.model)
    try:
        got = open_cpu(changed.model)(feeds)
    except QConvertError as error:
        raise _fixed_inside(source, str(error)) from None
    for chunk in chunks:
        part = {name: each[chunk] if name in follows else each for name, each in feeds.items()}
        wanted = run(part)
        for name in got:
            if (_rows(wanted[name]), _rows(got[name])) != (before, count):
                raise _fixed_inside(source, f"the first axis of `{name}` does not follow the batch")
        rows = {name: array[chunk] for name, array in got.items()}
        if why := describe_difference(wanted, rows, ROW_TOLERANCE):
            raise _fixed_inside(source, f"in another batch {why}")


def _rows(output: object) -> int | None:
    """Return the first axis of an output, None where it has none."""
    return output.shape[0] if isinstance(output, np.ndarray) and output.ndim else None


def _fixed_inside(source: str, why: str) -> QConvertError:
    return QConvertError(
        f"`{source}` cannot take another batch: this graph fixes the batch inside",
        hint="leave out `--batch`, or export the model again with the batch it needs",
        details=[why],
    )


def set_batch(specs: tuple[TensorSpec, ...], batch: str | int | None) -> tuple[TensorSpec, ...]:
    """Open or fix the first dimension of every input that shares the first input's."""
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


def set_input_shapes(model: ir.Model, specs: tuple[TensorSpec, ...]) -> ir.Model:
    """Return a copy with the inputs' shapes set, and every shape that follows from them."""
    model = model.clone()
    by_name = {spec.name: spec for spec in specs}
    for value in model.graph.inputs:
        if spec := by_name.get(value.name or ""):
            value.shape = ir.Shape(spec.shape)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            # A graph output must keep a shape, if only its rank.
            rank = value.shape.rank() if value.is_graph_output() and value.shape else None
            value.shape = None if rank is None else ir.Shape([None] * rank)
    return infer_shapes(model)[0]
