"""One small net as the graphs that each backend gets."""

from functools import cache
from pathlib import Path

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.backends.base import FLOAT, Precision
from qconvert.backends.installed import look
from qconvert.backends.ort import open_cpu
from qconvert.backends.tensorrt import graph_precision
from qconvert.calibrate.calibration import Calibration, Image, Origin
from qconvert.calibrate.collect import answering, collect
from qconvert.feeds import Feeds
from qconvert.graph.half import half
from qconvert.graph.taps import tap
from qconvert.quantize.planning import Wishes, make_plan
from qconvert.quantize.rewrite import apply
from tests.models import floats, mixed
from tests.quantize.rewritten import scheme


def images(count: int = 4) -> Feeds:
    return {"image": floats(count, 3, 16, 16, seed=7)}


@cache
def seen() -> Calibration:
    tapped = tap(mixed())
    names = tuple(Image(str(number), "") for number in range(8))
    start = Calibration(
        Origin("", tuple(each.tensor for each in tapped.taps), names, {}, "", False)
    )
    answer = answering(open_cpu(tapped.model), tapped)
    return collect([answer((range(8), images(8)))], tapped, start, lambda collector: None)


def graph(backend: str, precision: Precision) -> ir.Model:
    """Return the net as a backend wants it; INT8 by the backend's own scheme."""
    model = mixed()
    typed = backend != "tensorrt" or graph_precision(precision, look()) == "typed"
    alone = FLOAT.get(precision)
    if alone == "fp32" or (alone is not None and not typed):
        return model
    if alone is not None:
        return half(model, alone, {}).model
    return apply(model, make_plan(model, scheme(backend), seen().summaries, Wishes()))


def written(folder: Path, backend: str, precision: Precision) -> Path:
    """Write that graph."""
    path = folder / f"{precision}.onnx"
    onnx_io.save(graph(backend, precision), path)
    return path
