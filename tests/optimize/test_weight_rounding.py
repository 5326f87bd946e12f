"""Weights of a weight-only plan rounded on images, and accepted by the outputs."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import backends
from qconvert.backends.base import scheme_for
from qconvert.backends.ort import open_cpu
from qconvert.core.config import QuantizeConfig
from qconvert.core.progress import Progress, ignore_progress
from qconvert.graph.passes import infer_shapes
from qconvert.measure.output_error import sqnr_db
from qconvert.optimize.activation_scales import choose_activation_scales
from qconvert.optimize.candidate import Candidate
from qconvert.optimize.weight_rounding import round_layers, round_on_images, with_rounded
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from tests.models import floats, from_text
from tests.optimize.calibrated import candidate_of

# Inputs that vary together, behind a convolution, as those of layers in a network do.
NET = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 16, 16] image) => (float[N, 64, 12] scores) {
    conv = Conv <strides: ints = [2, 2]> (image, wc)
    relu = Relu (conv)
    rows = Reshape (relu, shape)
    tokens = Transpose <perm: ints = [0, 2, 1]> (rows)
    hidden = MatMul (tokens, w1)
    biased = Add (hidden, b1)
    active = Relu (biased)
    scores = MatMul (active, w2)
}
"""


def network() -> ir.Model:
    shapes = {"wc": (32, 3, 2, 2), "w1": (32, 64), "b1": (64,), "w2": (64, 12)}
    weights = {
        name: floats(*shape, seed=seed) / np.float32(8)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    shape = np.array([0, 32, -1])
    model = infer_shapes(from_text(NET, **weights, shape=shape))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def plan_of(candidate: Candidate, **settings: object) -> Plan:
    chosen = QuantizeConfig(**{"group": 32, **settings})  # type: ignore[arg-type]
    scheme = scheme_for(chosen, backends.requirements("cpu"), "int4-weights")
    options = QuantizeOptions("in float")
    return make_plan(candidate.loaded.model, scheme, {}, options, "int4-weights")


@pytest.mark.slow
def test_learned_weights_are_nearer_and_stored_with_the_plan() -> None:
    candidate, steps = candidate_of(network()), list[Progress]()
    plan = plan_of(candidate)
    saved, notes = round_on_images(
        plan, candidate.loaded, candidate.calibration, "default", steps.append
    )
    assert notes[0].startswith("GPTQ: 2 of 2 weights, used (validation SQNR ")
    assert sorted(saved.weights) == ["hidden", "scores"]
    assert saved.plan.learned
    counts = [(step.done, step.total) for step in steps if step.seconds is None]
    assert counts[:2] == [(1, 2), (2, 2)]
    images = next(iter(candidate.calibration.validation_batches()))
    expected = open_cpu(candidate.loaded.model)(images)
    nearest, learned = (
        sqnr_db(expected, open_cpu(apply_plan(candidate.loaded.model, row, weights))(images))
        for row, weights in ((plan, {}), (saved.plan, saved.weights))
    )
    assert learned > nearest + 2


@pytest.mark.slow
def test_graph_holds_the_integers_that_were_accepted() -> None:
    candidate = candidate_of(network())
    plan = replace(plan_of(candidate, group="channel", zero_points=False), kernels="onnx")
    model, calibration = candidate.loaded.model, candidate.calibration
    layers = round_layers(plan, model, calibration.training_batches(16), 512)
    assert [layer.is_learned for layer in layers.values()] == [True, True]
    images = next(iter(calibration.validation_batches()))
    expected = open_cpu(with_rounded(plan, model, layers))(images)
    saved, _ = round_on_images(plan, candidate.loaded, calibration, "quick", ignore_progress)
    written = apply_plan(model, saved.plan, saved.weights)
    actual = open_cpu(written, keep_qdq=True)(images)
    assert sqnr_db(expected, actual) > 20
    again, _ = round_on_images(plan, candidate.loaded, calibration, "quick", ignore_progress)
    assert again.plan == saved.plan


def test_weights_are_rounded_to_nearest_where_gptq_cannot_run() -> None:
    candidate = candidate_of(network(), images=8)
    plan = plan_of(candidate)
    for calibration, effort, reason in (
        (candidate.calibration, "none", ""),
        (candidate.calibration, "default", "GPTQ needs more calibration images than 8"),
        (replace(candidate.calibration, images=None), "quick", "GPTQ needs the calibration images"),
    ):
        saved, notes = round_on_images(plan, candidate.loaded, calibration, effort, ignore_progress)
        assert saved.plan == plan
        assert not saved.weights
        assert reason in "".join(notes)


OUTLIERS = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 16, 16] image) => (float[N, 64, 24] left, float[N, 64, 24] right) {
    conv = Conv <strides: ints = [2, 2]> (image, wc)
    rows = Reshape (conv, shape)
    tokens = Transpose <perm: ints = [0, 2, 1]> (rows)
    normed = LayerNormalization (tokens, gain, offset)
    left = MatMul (normed, w1)
    right = MatMul (normed, w2)
}
"""


@pytest.mark.slow
def test_channels_with_large_activations_get_factors() -> None:
    gain = np.ones(32, np.float32)
    gain[:3] = 30
    weights = {"wc": floats(32, 3, 2, 2), "w1": floats(32, 24), "w2": floats(32, 24, seed=3)}
    more = {"gain": gain, "offset": np.zeros(32, np.float32), "shape": np.array([0, 32, -1])}
    model = infer_shapes(from_text(OUTLIERS, **weights, **more))[0]
    for node in model.graph:
        node.name = node.outputs[0].name
    candidate = candidate_of(model)
    plan, calibration = plan_of(candidate), candidate.calibration
    batches = calibration.training_batches(16)
    factors = choose_activation_scales(plan, candidate.loaded.model, batches, 512)
    assert list(factors) == ["normed"]
    assert min(factors["normed"][:3]) > 1.5 * max(factors["normed"][3:])
    saved, notes = round_on_images(plan, candidate.loaded, calibration, "default", ignore_progress)
    assert notes[1].startswith("AWQ: factors for 1 tensors, ")
    assert bool(saved.plan.equalized) == (", used (" in notes[1])
    written = apply_plan(candidate.loaded.model, saved.plan, saved.weights)
    assert [node.op_type for node in written.graph].count("Mul") == 0
    images = next(iter(calibration.validation_batches()))
    outputs = open_cpu(candidate.loaded.model)(images)
    assert sqnr_db(outputs, open_cpu(written)(images)) > 18


def test_tensors_without_large_activations_get_no_factors() -> None:
    candidate = candidate_of(network())
    plan = plan_of(candidate)
    batches = candidate.calibration.training_batches(8)
    factors = choose_activation_scales(plan, candidate.loaded.model, batches, 256)
    assert set(factors) <= {"biased", "active"}
