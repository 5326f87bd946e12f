"""Plans with ranges measured on a few images, for tests of training."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.scales import Range
from qconvert.core.tensors import Tensors
from qconvert.graph.taps import find_observed_tensors
from qconvert.quantize.placement import Selection, place_quantizers
from qconvert.quantize.plan import Plan
from tests.quantize.quantized_models import plan_from, scheme


def expose_tensors(model: ir.Model) -> ir.Model:
    """Return a copy of a model that returns all its tensors."""
    model = model.clone()
    outputs = {value.name for value in model.graph.outputs}
    values = [value for node in model.graph for value in node.outputs]
    typed = [value for value in values if value.dtype is not None and value.uses()]
    model.graph.outputs.extend(value for value in typed if value.name not in outputs)
    return model


def run_all(model: ir.Model, feeds: Tensors, *, keep_qdq: bool = False) -> Tensors:
    """Return all tensors of a model by name."""
    return {**feeds, **open_cpu(expose_tensors(model), keep_qdq=keep_qdq)(feeds)}


def plan_of(model: ir.Model, backend: str, feeds: Tensors) -> Plan:
    """Return the plan of a backend with the range of each tensor on these images."""
    observed = find_observed_tensors(model)
    layers = place_quantizers(model, scheme(backend), observed, Selection())
    values = run_all(model, feeds)
    ranges = {
        name: Range(float(values[name].min()), float(values[name].max()))
        for name in observed.quantizable
        if name in values
    }
    return replace(
        plan_from(model, backend, layers, ranges), method="minmax", weight_method="minmax"
    )


def drawn_images(model: ir.Model, count: int, seed: int) -> Tensors:
    """Return inputs of noise for a model of images."""
    (spec,) = onnx_io.inputs(model)
    shape = [count, *(int(size) for size in spec.shape[1:])]
    values = np.random.default_rng(seed).standard_normal(shape)
    return {spec.name: values.astype(np.float32)}
