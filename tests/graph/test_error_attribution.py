"""Networks that compare themselves with the one they were made from."""

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.graph.error_attribution import (
    OUTPUT_PREFIX,
    REFERENCE_PREFIX,
    as_consumed,
    build_attribution_model,
    clipping_range,
    comparable_tensors,
    expose_tensors,
    values_by_name,
)
from qconvert.graph.fp16.convert import convert_to_half
from qconvert.graph.fp16.emulate import emulate_half
from qconvert.quantize.apply_plan import apply_plan
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned

IMAGES = floats(4, 3, 16, 16)


def rewritten(scheme: str) -> tuple[ir.Model, ir.Model]:
    reference = mixed()
    return reference, apply_plan(reference, planned(reference, scheme))


def halved() -> ir.Model:
    return convert_to_half(mixed(), "fp16", {}).model


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_tensors_are_matched_and_read_as_their_readers_do(scheme: str) -> None:
    reference, model = rewritten(scheme)
    tensors = comparable_tensors(reference, model)
    assert {"image", "a", "narrow", "sum", "last", "c", "scores"} & {*tensors} >= {"a", "scores"}
    # What is fused with a Relu or Clip is no tensor of its own, nor is what only moves values.
    assert not {"stem", "wide", "small", "flat"} & {*tensors}
    # Of the sum TensorRT reads nothing in integers; all that follows the first Clip both do.
    made = [as_consumed(values_by_name(model.graph)[name]).producer() for name in ("a", "sum")]
    kinds = [node.op_type for node in made if node is not None]
    assert kinds == ["DequantizeLinear", "DequantizeLinear" if scheme == "cpu" else "Add"]


def test_what_a_network_answers_is_what_it_computes() -> None:
    reference, model = rewritten("cpu")
    tensors = comparable_tensors(reference, model)
    found = open_cpu(expose_tensors(model, tensors), keep_qdq=True)({"image": IMAGES})
    whole = open_cpu(model, keep_qdq=True)({"image": IMAGES})
    assert [*found] == [OUTPUT_PREFIX + name for name in tensors]
    np.testing.assert_array_equal(found[OUTPUT_PREFIX + "scores"], whole["scores"])


def test_sums_are_those_of_the_tensors_themselves() -> None:
    reference, model = rewritten("cpu")
    shadow = build_attribution_model(model, comparable_tensors(reference, model))
    names = [each.tensor for each in shadow.tensors]
    exact = open_cpu(expose_tensors(reference, names), keep_qdq=True)({"image": IMAGES})
    ours = open_cpu(expose_tensors(model, names), keep_qdq=True)({"image": IMAGES})
    fed = {REFERENCE_PREFIX + name: exact[OUTPUT_PREFIX + name] for name in names}
    sums = open_cpu(shadow.model, keep_qdq=True)({"image": IMAGES, **fed})
    for point in shadow.tensors:
        a, b = exact[OUTPUT_PREFIX + point.tensor], ours[OUTPUT_PREFIX + point.tensor]
        assert sums[point.signal] == pytest.approx(np.square(a).sum(), rel=1e-5)
        assert sums[point.power] == pytest.approx(np.square(b).sum(), rel=1e-5)
        assert sums[point.arriving] == pytest.approx(np.square(a - b).sum(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_what_a_layer_makes_alone_is_its_error_on_exact_inputs(scheme: str) -> None:
    """Held against a model in which nothing else is rounded."""
    reference = mixed()
    plan = planned(reference, scheme)
    model = apply_plan(reference, plan)
    shadow = build_attribution_model(model, comparable_tensors(reference, model))
    names = [each.tensor for each in shadow.tensors]
    exact = open_cpu(expose_tensors(reference, names), keep_qdq=True)({"image": IMAGES})
    fed = {REFERENCE_PREFIX + name: exact[OUTPUT_PREFIX + name] for name in names}
    sums = open_cpu(shadow.model, keep_qdq=True)({"image": IMAGES, **fed})
    made = {each.tensor: float(sums[each.made]) for each in shadow.tensors if each.made}
    assert made["scores"] == pytest.approx(_alone(reference, model, "scores", fed), rel=1e-3)
    assert made["c"] == pytest.approx(_alone(reference, model, "c", fed), rel=1e-3)


def _alone(reference: ir.Model, model: ir.Model, tensor: str, fed: dict[str, np.ndarray]) -> float:
    """Cut the network before a layer, by hand, and feed the cut ends."""
    cut = model.clone()
    known = values_by_name(cut.graph)
    ends = {
        name: as_consumed(known[name])
        for name in comparable_tensors(reference, model)
        if name != tensor
    }
    feeds = {}
    for name, value in ends.items():
        entry = ir.Value(name=f"cut.{name}", shape=value.shape, type=value.type)
        cut.graph.inputs.append(entry)
        ir.convenience.replace_all_uses_with(value, entry, replace_graph_outputs=True)
        feeds[f"cut.{name}"] = fed[REFERENCE_PREFIX + name]
    cut.graph.outputs[:] = [as_consumed(known[tensor])]
    answer = open_cpu(cut, keep_qdq=True)({"image": IMAGES, **feeds})
    apart = next(iter(answer.values())) - fed[REFERENCE_PREFIX + tensor]
    return float(np.square(apart.astype(np.float64)).sum())


def test_the_ends_of_a_grid_count_unless_one_of_them_is_zero() -> None:
    reference, model = rewritten("tensorrt")
    both = clipping_range(values_by_name(model.graph)["c"])
    assert both is not None
    assert both.ends == (-128, 127)
    step = 2 * both.radius / 256
    assert both.middle == pytest.approx(-step / 2)
    assert clipping_range(values_by_name(reference.graph)["c"]) is None


def test_half_precision_is_rounded_at_every_node() -> None:
    model = halved()
    written = emulate_half(model)
    assert onnx_io.fingerprint(model) == onnx_io.fingerprint(halved())
    computing = [node for node in written.graph if node.op_type not in ("Cast",)]
    assert all(
        value.dtype is not ir.DataType.FLOAT16
        for node in computing
        for value in (*node.inputs, *node.outputs)
        if value is not None
    )
    tensors = comparable_tensors(mixed(), model)
    found = open_cpu(expose_tensors(model, tensors), keep_qdq=True)({"image": IMAGES})
    for name in ("a", "sum", "c"):
        inner = found[OUTPUT_PREFIX + name]
        np.testing.assert_array_equal(inner, inner.astype(np.float16).astype(np.float32))
    exact = open_cpu(mixed())({"image": IMAGES})["scores"]
    assert np.abs(found[OUTPUT_PREFIX + "scores"] - exact).max() > 1e-5


def test_the_precision_of_a_layer_is_what_it_reads() -> None:
    reference, model = rewritten("cpu")
    points = {
        each.tensor: each.precision
        for each in build_attribution_model(model, comparable_tensors(reference, model)).tensors
    }
    assert points["c"] == "int8"
    other = halved()
    points = {
        each.tensor: each.precision
        for each in build_attribution_model(other, comparable_tensors(reference, other)).tensors
    }
    assert points["c"] == "fp16"
    assert "image" not in points
