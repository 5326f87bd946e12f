"""An ONNX file as a source: its own reference, with the shapes the user asked for."""

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.config import Export
from qconvert.errors import UsageError
from qconvert.feeds import TensorSpec, parse, settle
from qconvert.graph.simplify import infer_shapes
from qconvert.images.preprocess import Preprocess
from qconvert.sources.source import Source

# Where an exported file says what is done to a picture before it goes in.
PREPROCESS = "qconvert.preprocess"


def load(source: str, export: Export, trust: bool) -> Source:
    """Read an ONNX file; `inputs` and `batch` set dimensions, everything else stays as it is."""
    path = Path(source)
    model = onnx_io.load(path)
    if export.weights is not None:
        raise UsageError(f"`{source}` brings its weights", hint="leave out `--weights`")
    specs = settle(onnx_io.inputs(model), [parse(given) for given in export.inputs])
    specs = with_batch(specs, export.batch)
    if specs != onnx_io.inputs(model):
        model = reshape(model, specs)
    return Source(path.stem, model, specs, preprocess=_preprocess(model))


def _preprocess(model: ir.Model) -> Preprocess | None:
    """Return what an earlier export wrote into the file."""
    stored = model.metadata_props.get(PREPROCESS)
    if stored is None:
        return None
    try:
        return Preprocess.from_dict(json.loads(stored))
    except (ValueError, TypeError):
        raise UsageError(
            f"the model's metadata `{PREPROCESS}` is damaged", hint="export the model again"
        ) from None


def with_batch(specs: tuple[TensorSpec, ...], batch: str | int | None) -> tuple[TensorSpec, ...]:
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


def reshape(model: ir.Model, specs: tuple[TensorSpec, ...]) -> ir.Model:
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
