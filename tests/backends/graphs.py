"""One small net as the graphs that each backend gets."""

from functools import cache
from pathlib import Path

import onnx_ir as ir

from qconvert.backends.base import FLOAT, Precision
from qconvert.backends.ort import open_cpu
from qconvert.backends.system_probe import detect
from qconvert.backends.tensorrt import graph_precision
from qconvert.calibrate.calibration import Calibration, CalibrationImage, Origin
from qconvert.calibrate.collect import collect, make_tapped_runner
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.graph.taps import add_calibration_taps
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from tests.models import floats, mixed
from tests.quantize.quantized_models import scheme


def images(count: int = 4) -> Tensors:
    return {"image": floats(count, 3, 16, 16, seed=7)}


@cache
def seen() -> Calibration:
    tapped = add_calibration_taps(mixed())
    names = tuple(CalibrationImage(str(number), "") for number in range(8))
    start = Calibration(
        Origin("", tuple(each.tensor for each in tapped.taps), names, {}, "", False)
    )
    answer = make_tapped_runner(open_cpu(tapped.model), tapped)
    return collect([answer((range(8), images(8)))], tapped, start, lambda collector: None)


def graph(backend: str, precision: Precision) -> ir.Model:
    """Return the net as a backend wants it; INT8 by the backend's own scheme."""
    model = mixed()
    typed = backend != "tensorrt" or graph_precision(precision, detect()) == "typed"
    alone = FLOAT.get(precision)
    if alone == "fp32" or (alone is not None and not typed):
        return model
    if alone is not None:
        return convert_to_half(model, alone, {}).model
    return apply_plan(model, make_plan(model, scheme(backend), seen().summaries, QuantizeOptions()))


def written(folder: Path, backend: str, precision: Precision) -> Path:
    """Write that graph."""
    path = folder / f"{precision}.onnx"
    onnx_io.save(graph(backend, precision), path)
    return path
