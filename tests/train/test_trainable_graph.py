"""The torch module of a Q/DQ graph: the numbers of ONNX Runtime, and the way back to a plan."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qconvert.demo
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.scales import Grid
from qconvert.core.tensors import Tensors
from qconvert.graph.passes import infer_shapes
from qconvert.measure.output_error import sqnr_db
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.pairs import PAIR_LIMIT, find_pairs
from qconvert.quantize.plan import Plan
from qconvert.quantize.shifted_tensors import find_shiftable
from qconvert.train.blocks import float_plan
from qconvert.train.fake_quantize import ActivationQuantizer
from qconvert.train.trainable_graph import TrainableGraph
from tests import zoo
from tests.models import floats, from_text, tiny
from tests.quantize.test_shifted_tensors import FEEDS
from tests.quantize.test_shifted_tensors import network as shiftable_network
from tests.train.trained import drawn_images, plan_of, run_all

BACKENDS = ("cpu", "tensorrt")
DEMO = ("network", "detector", "segmenter")


def demo_network(name: str) -> ir.Model:
    folder = Path(str(qconvert.demo.__file__)).parent
    return infer_shapes(onnx_io.load(folder / f"{name}.onnx"))[0]


def compute(module: TrainableGraph, feeds: Tensors) -> Tensors:
    with torch.no_grad():
        outputs = module({name: torch.from_numpy(array) for name, array in feeds.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def small_network() -> ir.Model:
    model = infer_shapes(tiny())[0]
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    return model


def change_parameters(module: TrainableGraph, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def require_float_agreement(model: ir.Model, feeds: Tensors, plan: Plan) -> None:
    expected = open_cpu(model)(feeds)
    for name, array in compute(TrainableGraph(model, float_plan(plan)), feeds).items():
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4 * largest)


def require_agreement_of_layers(model: ir.Model, feeds: Tensors, plan: Plan) -> None:
    """Compare each operation on the inputs that it has in ONNX Runtime."""
    values = run_all(apply_plan(model, plan), feeds, keep_qdq=True)
    module = TrainableGraph(model, plan)
    constants = module.constants()
    own: dict[str, torch.Tensor] = {}
    compared = 0
    for step in module.steps:
        tensors = {name: torch.from_numpy(array) for name, array in values.items()}
        known = {**constants, **own, **tensors}
        with torch.no_grad():
            results = step.run(*[known[name] if name else None for name in step.inputs])
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip(step.outputs, results, strict=False):
            if name not in values:
                own[name] = result
                continue
            compared += 1
            quantizer = step.run.func if isinstance(step.run, partial) else step.run
            expected = values[name].astype(np.float64)
            tolerance = 1e-5 * np.abs(expected).max(initial=0.0)
            if isinstance(quantizer, ActivationQuantizer):
                tolerance = quantizer.step
            difference = np.abs(result.numpy().astype(np.float64) - expected)
            assert difference.max(initial=0.0) <= tolerance * 1.001, name
    assert compared > len(plan.layers) / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_bit_grids_agree_with_onnx_runtime(backend: str) -> None:
    model = small_network()
    feeds = drawn_images(model, 4, seed=0)
    plan = plan_of(model, backend, feeds)
    narrow = replace(plan, activations=replace(plan.activations, bits=4), weights=Grid(4))
    require_agreement_of_layers(model, feeds, narrow)


def shifted_plan(model: ir.Model, feeds: Tensors) -> Plan:
    plan = plan_of(model, "tensorrt", feeds)
    return replace(plan, shifted=tuple(find_shiftable(model.graph, plan)))


def test_shifted_grids_are_learned_from_zero_and_shifted_again() -> None:
    model = shiftable_network()
    plan = shifted_plan(model, FEEDS)
    assert len(plan.shifted) == 3
    module = TrainableGraph(model, plan)
    expected = open_cpu(apply_plan(model, plan), keep_qdq=True)(FEEDS)
    assert sqnr_db(expected, compute(module, FEEDS)) > 40
    change_parameters(module, 0.05)
    saved = module.to_plan()
    assert saved.plan.shifted == plan.shifted
    for name in plan.shifted:
        assert saved.plan.tensors[name].low == 0.0
        assert saved.plan.tensors[name] != plan.tensors[name]
    outputs = open_cpu(apply_plan(model, saved.plan, saved.weights), keep_qdq=True)(FEEDS)
    assert sqnr_db(outputs, compute(module, FEEDS)) > 40


def test_layers_with_other_bits_keep_them() -> None:
    model = shiftable_network()
    plan = replace(plan_of(model, "cpu", FEEDS), weights=Grid(4))
    wide = plan.layers["d"].weight
    assert wide is not None
    plan.layers["d"] = replace(plan.layers["d"], weight=replace(wide, bits=8))
    module = TrainableGraph(model, plan)
    change_parameters(module, 3.0)
    largest = {
        name: int(np.abs(row.integers).max()) for name, row in module.to_plan().weights.items()
    }
    assert largest["e"] == 7
    assert largest["d"] > 7
    require_agreement_of_layers(model, FEEDS, plan)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DEMO)
def test_demo_network_agrees_with_onnx_runtime(name: str, backend: str) -> None:
    model = demo_network(name)
    feeds = drawn_images(model, 2, seed=0)
    plan = plan_of(model, backend, feeds)
    require_float_agreement(model, feeds, plan)
    require_agreement_of_layers(model, feeds, plan)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", zoo.NETS)
def test_zoo_network_agrees_with_onnx_runtime(name: str) -> None:
    model = zoo.net(name)
    (image,) = onnx_io.inputs(model)
    feeds: Tensors = {image.name: zoo.images(int(image.shape[-1]), 2, seed=5)}
    plans = [plan_of(model, backend, feeds) for backend in BACKENDS]
    require_float_agreement(model, feeds, plans[0])
    for plan in plans:
        require_agreement_of_layers(model, feeds, plan)


@pytest.mark.parametrize("backend", BACKENDS)
def test_untrained_module_gives_back_its_plan(backend: str) -> None:
    model = small_network()
    feeds = drawn_images(model, 4, seed=0)
    plan = plan_of(model, backend, feeds)
    saved = TrainableGraph(model, plan).to_plan()
    assert saved.plan.tensors == plan.tensors
    before, after = (
        open_cpu(graph, keep_qdq=True)(feeds)
        for graph in (apply_plan(model, plan), apply_plan(model, saved.plan, saved.weights))
    )
    np.testing.assert_array_equal(after["scores"], before["scores"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_plan_of_trained_module_computes_what_the_module_computes(backend: str) -> None:
    model = small_network()
    feeds = drawn_images(model, 8, seed=0)
    module = TrainableGraph(model, plan_of(model, backend, feeds))
    change_parameters(module, 0.2)
    saved = module.to_plan()
    outputs = open_cpu(apply_plan(model, saved.plan, saved.weights), keep_qdq=True)(feeds)
    np.testing.assert_allclose(
        outputs["scores"], compute(module, feeds)["scores"], atol=0.05
    )  # some values round otherwise


def test_pairs_stay_within_their_limit_whatever_is_learned() -> None:
    model = small_network()
    plan = plan_of(model, "cpu", drawn_images(model, 4, seed=0))
    assert plan.portable
    module = TrainableGraph(model, plan)
    with torch.no_grad():
        next(iter(module.parameter_groups()["weights"])).mul_(10)
    rows = np.moveaxis(module.to_plan().weights[module.layers[0].node].integers, 1, -1)
    flat = rows.reshape(len(rows), -1).astype(int)
    for firsts, seconds in find_pairs(flat.shape[-1], 3):
        sums = np.abs(flat[:, firsts] + flat[:, seconds])
        assert sums.max() == PAIR_LIMIT


def test_gradient_of_a_step_is_that_of_the_error_it_makes() -> None:
    x = torch.linspace(-4, 4, 4001)
    quantizer = ActivationQuantizer(0.02, 0, (-128, 127), fixed=False)
    (quantizer(x) - x).square().sum().backward()  # clips a third of the values on both sides
    gradient = quantizer.log_step.grad
    assert gradient is not None
    assert gradient < 0  # a larger step clips less


def test_scale_that_is_a_power_of_two_is_not_learned() -> None:
    assert not list(ActivationQuantizer(0.25, 0, (-128, 127), fixed=True).parameters())


def test_layers_that_share_a_weight_share_its_parameters() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 16] x) => (float[batch, 16] y) {
        first = MatMul (x, weight)
        mean = Relu (first)
        y = MatMul (mean, weight)
    }"""
    model = infer_shapes(from_text(text, weight=floats(16, 16)))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    feeds: Tensors = {"x": floats(64, 16, seed=1)}
    module = TrainableGraph(model, plan_of(model, "tensorrt", feeds))
    assert len(module.layers) == 2
    assert len(module.weights) == 1
    with torch.no_grad():
        next(iter(module.parameter_groups()["weights"])).add_(1.0)
    saved = module.to_plan()
    outputs = open_cpu(apply_plan(model, saved.plan, saved.weights), keep_qdq=True)(feeds)
    np.testing.assert_allclose(outputs["y"], compute(module, feeds)["y"], rtol=1e-3, atol=1e-3)


def test_operator_without_gradient_is_refused_by_name() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    net (float[batch, 4] x) => (float[batch, 4] y) {
        sorted = Selu (x)
        hard = Hardmax (sorted)
        y = Add (hard, x)
    }"""
    model = from_text(text)
    with pytest.raises(QConvertError, match="cannot be trained") as refusal:
        TrainableGraph(model, float_plan(plan_of(tiny(), "cpu", drawn_images(tiny(), 2, seed=0))))
    assert [line.split(",")[0] for line in refusal.value.details] == ["Selu", "Hardmax"]
