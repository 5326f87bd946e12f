"""Times of operators from the profiler of ONNX Runtime."""

import json
from pathlib import Path

from qconvert.backends.base import Engine
from qconvert.backends.ort_profile import OperatorTime, profile_engines, read_profile
from qconvert.core import onnx_io
from qconvert.core.formats import Precision
from qconvert.quantize.apply_plan import apply_plan
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned


def event(name: str, op: str, duration: int, category: str = "Node") -> dict[str, object]:
    return {"cat": category, "name": name, "dur": duration, "args": {"op_name": op}}


def test_least_time_of_an_operator_counts_in_the_order_of_the_first_run() -> None:
    events = [
        event("model_run", "", 900, "Session"),
        event("b_kernel_time", "Conv", 120),
        event("b_fence_before", "Conv", 1),
        event("a_kernel_time", "Relu", 30),
        event("b_kernel_time", "Conv", 80),
        event("a_kernel_time", "Relu", 40),
    ]
    expected = (OperatorTime("b", "Conv", 0.08, ("y",)), OperatorTime("a", "Relu", 0.03))
    assert read_profile(json.dumps(events), {"b": ("y",)}) == expected


def engine_of(precision: Precision) -> Engine:
    model = mixed()
    if precision == "int8":
        model = apply_plan(model, planned(model, "cpu"))
    folder = Path(precision)
    folder.mkdir()
    onnx_io.save(model, folder / "model.onnx")
    return Engine("cpu", precision, folder, "model.onnx", ("model.onnx",), {}, threads=1)


def test_engines_give_the_operators_that_they_run() -> None:
    engines = {"int8": engine_of("int8"), "float": engine_of("fp32")}
    feeds = {name: {"image": floats(1, 3, 16, 16)} for name in engines}
    shown: list[float | None] = []
    profiles = profile_engines(engines, feeds, 0.01, lambda text, share: shown.append(share))
    assert {"QLinearConv", "QuantizeLinear"} <= {time.op for time in profiles["int8"]}
    assert not any("QLinear" in time.op for time in profiles["float"])
    assert ("scores",) in [time.outputs for time in profiles["float"]]
    assert all(time.ms >= 0 for times in profiles.values() for time in times)
    assert shown[-1] == 1.0
    assert not list(Path().glob("*.json"))
