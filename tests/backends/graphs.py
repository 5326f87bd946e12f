"""A small network as the graph that each backend takes."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import onnx_ir as ir

from qconvert import backends
from qconvert.backends.base import FLOAT, scheme_for
from qconvert.calibrate.summary import Summary
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.formats import FORMATS, Precision, quantized_format
from qconvert.core.tensors import Tensors
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from tests.calibrate.activations import summarize
from tests.models import floats, mixed, products


def images(count: int = 4) -> Tensors:
    return {"image": floats(count, 3, 16, 16, seed=7)}


@cache
def _summaries() -> Mapping[str, Summary]:
    return summarize(mixed(), images(8))


@cache
def make_graph(backend: str, precision: Precision) -> ir.Model:
    """Return the network as a backend takes it; integers in the backend's own scheme."""
    model = products() if precision == "int8-dynamic" else mixed()
    if (name := quantized_format(precision)) is not None:
        # The network's product has 32 inputs.
        group = 32 if FORMATS[name].weights_only else None
        settings, options = QuantizeConfig(group=group), QuantizeOptions()
        required = scheme_for(settings, backends.requirements(backend), name)
        plan = make_plan(model, required, _summaries(), options, name)
        return apply_plan(model, plan)
    dtype = FLOAT[precision]
    if dtype == "fp32" or not backends.requirements(backend).strongly_typed:
        return model
    return convert_to_half(model, dtype, {}).model


def write_graph(folder: Path, backend: str, precision: Precision) -> Path:
    path = folder / f"{precision}.onnx"
    onnx_io.save(make_graph(backend, precision), path)
    return path


def ignore_progress(text: str, fraction: float | None) -> None:
    pass
