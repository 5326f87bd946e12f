"""Whole networks of many structures, in every precision, down to an engine.

The builder is that of TensorRT for RTX: it takes the types as they are written, and needs no GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import backends
from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import load_calibration
from qconvert.core import config_file, onnx_io
from qconvert.core.cache import Cache
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.run.calibrate import calibrate
from qconvert.run.context import JobContext
from qconvert.run.quantize import max_magnitudes
from tests import strongly_typed, zoo
from tests.conftest import Outcome, write

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

COUNT = 8
COMPUTING = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Case:
    """A network, its file, and its calibration."""

    model: ir.Model
    path: Path
    calibration: Path
    feeds: Tensors


@pytest.fixture(scope="module", params=zoo.NETS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    model = zoo.net(name)
    (image,) = onnx_io.inputs(model)
    side = int(image.shape[-1])
    arrays: dict[str, Any] = {image.name: zoo.images(side, COUNT, seed=5)}
    np.savez(folder / "images.npz", **arrays)
    path, calibration = write(model, folder / "net.onnx"), folder / "calibration.npz"
    settings = {"model": str(path), "calibration.images": folder / "images.npz"}
    context = JobContext(config_file.load(None, settings), Cache(folder / "store"))
    calibrate(context, calibration)
    return Case(model, path, calibration, {image.name: zoo.images(side, 4, seed=6)})


def test_zoo_network_builds_in_fp32(case: Case) -> None:
    assert strongly_typed.build(case.model) > onnx_io.weight_bytes(case.model)


def test_zoo_network_builds_in_fp16_with_close_outputs(case: Case) -> None:
    halved = convert_to_half(
        case.model, "fp16", max_magnitudes(case.model, load_calibration(case.calibration))
    )
    layers = [node for node in halved.model.graph if node.op_type in COMPUTING]
    floating = {node.name for node in layers if node.outputs[0].dtype is not ir.DataType.FLOAT16}
    assert floating <= halved.islands.keys()
    assert error(case, halved.model) < 0.1
    assert strongly_typed.build(halved.model)


def test_zoo_network_is_quantized_at_run_time_with_close_outputs(case: Case) -> None:
    required = backends.requirements("cpu").schemes["int8-dynamic"]
    make = partial(make_plan, case.model, required, {}, QuantizeOptions("at run time"))
    if not {node.op_type for node in case.model.graph} & {"MatMul", "Gemm", "LSTM"}:
        with pytest.raises(QConvertError, match="nothing to quantize"):
            make("int8-dynamic")
        return
    plan = make("int8-dynamic")
    quantized = apply_plan(case.model, plan)
    onnx_io.require_valid(quantized)
    products = [node for node in quantized.graph if node.op_type == "MatMulInteger"]
    assert len(products) == plan.quantized
    assert error(case, quantized) < 0.1


def test_zoo_network_builds_in_int8_and_fp16_as_planned(
    case: Case, qconvert: Callable[..., Outcome], tmp_path: Path
) -> None:
    out, written = tmp_path / "int8.onnx", tmp_path / "plan.json"
    options = ["--calibration", case.calibration, "--backend", "tensorrt", "--rest", "fp16"]
    outcome = qconvert("quantize", case.path, *options, "-o", out, "--plan-out", written)
    assert outcome.code == 0, outcome.err
    model, plan = onnx_io.load(out), plan_files.read_plan(written)
    planned = {name for name, layer in plan.layers.items() if layer.op in COMPUTING}
    planned -= {name for name, layer in plan.layers.items() if layer.left}
    nodes = [node for node in model.graph if node.name in planned]
    assert len(nodes) == len(planned) > 0
    assert {producer(node.inputs[slot]) for node in nodes for slot in (0, 1)} == {
        "DequantizeLinear"
    }
    assert strongly_typed.build(model)


def producer(value: ir.Value | None) -> str:
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""


def error(case: Case, model: ir.Model) -> float:
    """Return the largest root mean square error of an output, relative to how it varies."""
    expected, outputs = (open_cpu(net)(case.feeds) for net in (case.model, model))
    return max(
        float(np.sqrt(np.square(outputs[name] - value).mean()) / value.std())
        for name, value in expected.items()
    )
