"""A graph that runs segment by segment has the same tensors, and holds only those still read."""

import functools

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.graph.passes import infer_shapes
from qconvert.optimize.partial_execution import (
    MAX_ACTIVATION_BYTES,
    PartialExecution,
    limit_images,
    peak_activation_bytes,
)
from tests.models import floats, mixed, tiny

open_model = functools.partial(open_cpu, keep_qdq=True)


def test_partial_execution_gives_tensors_of_full_run() -> None:
    net = mixed()
    image = floats(4, 3, 16, 16, seed=2)
    names = [str(node.outputs[0].name) for node in net.graph]
    whole = net.clone()
    whole.graph.outputs.clear()
    whole.graph.outputs.extend(node.outputs[0] for node in whole.graph)
    expected = open_cpu(whole)({"image": image})
    execution = PartialExecution(net, open_model, [{"image": image[:3]}, {"image": image[3:]}])
    for node, name in zip(net.graph, names, strict=True):
        execution.run_to(node.name or "", name, inclusive=True)
        tensor = np.concatenate([batch[name] for batch in execution.live])
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-4, atol=1e-5)


def small() -> ir.Model:
    """Return the smallest classifier, its shapes known and its nodes named."""
    net = infer_shapes(tiny())[0]
    for node in net.graph:
        node.name = node.outputs[0].name
    return net


def test_tensor_is_dropped_after_its_last_reader() -> None:
    net = small()
    execution = PartialExecution(net, open_model, [{"image": floats(2, 3, 8, 8)}])
    last = net.graph[-1]
    execution.run_to(last.name or "", "flat")
    assert [set(batch) for batch in execution.live] == [{"flat"}]
    execution.run_to(last.name or "", "scores", inclusive=True)
    assert [set(batch) for batch in execution.live] == [{"scores"}]


def test_peak_bytes_are_those_of_the_widest_place() -> None:
    # conv and relu, 4 channels of 8 by 8 each
    assert peak_activation_bytes(small()) == 2 * 4 * 4 * 8 * 8


def test_images_are_limited_by_the_activations_of_two_models() -> None:
    at_most = MAX_ACTIVATION_BYTES // (2 * peak_activation_bytes(small()))
    assert [limit_images(small(), count) for count in (3, 10**9)] == [3, at_most]
    huge = small()
    huge.graph[0].outputs[0].shape = ir.Shape((1, 10**9, 10**9))
    assert limit_images(huge, 3) == 1


def test_execution_stays_where_it_is_if_the_next_tensors_are_too_large() -> None:
    net = small()
    execution = PartialExecution(net, open_model, [{"image": floats(2, 3, 8, 8)}])
    last = net.graph[-1].name or ""
    assert not execution.run_to(last, max_bytes=16)
    assert (execution.position, [set(batch) for batch in execution.live]) == (0, [{"image"}])
    assert execution.run_to(last, max_bytes=10**6)
    (batch,) = execution.live
    expected = open_cpu(net)({"image": floats(2, 3, 8, 8)})["scores"]
    np.testing.assert_allclose(execution.open_rest()(batch)["scores"], expected, rtol=1e-5)
