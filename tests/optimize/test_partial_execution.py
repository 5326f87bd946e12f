"""A graph that is run in stretches answers the same, and forgets what nobody reads any more."""

import functools

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.graph.simplify import infer_shapes
from qconvert.optimize.partial_execution import PartialExecution, peak_activation_bytes
from tests.models import floats, mixed, tiny

literal = functools.partial(open_cpu, keep_qdq=True)


def test_every_tensor_is_the_one_of_a_run_in_one_go() -> None:
    net = mixed()
    image = floats(4, 3, 16, 16, seed=2)
    names = [str(node.outputs[0].name) for node in net.graph]
    whole = net.clone()
    whole.graph.outputs.clear()
    whole.graph.outputs.extend(node.outputs[0] for node in whole.graph)
    wanted = open_cpu(whole)({"image": image})
    run = PartialExecution(net, literal, [{"image": image[:3]}, {"image": image[3:]}])
    for node, name in zip(net.graph, names, strict=True):
        run.run_to(node.name or "", name, inclusive=True)
        got = np.concatenate([part[name] for part in run.live])
        np.testing.assert_allclose(got, wanted[name], rtol=1e-4, atol=1e-5)


def small() -> ir.Model:
    """Return the smallest classifier, its shapes known and its nodes named."""
    net = infer_shapes(tiny())[0]
    for node in net.graph:
        node.name = node.outputs[0].name
    return net


def test_what_was_read_for_the_last_time_is_gone() -> None:
    net = small()
    run = PartialExecution(net, literal, [{"image": floats(2, 3, 8, 8)}])
    last = net.graph[-1]
    run.run_to(last.name or "", "flat")
    assert [set(part) for part in run.live] == [{"flat"}]
    run.run_to(last.name or "", "scores", inclusive=True)
    assert [set(part) for part in run.live] == [{"scores"}]


def test_the_widest_place_of_a_graph_is_known_without_running_it() -> None:
    # conv and relu, 4 channels of 8 by 8 each
    assert peak_activation_bytes(small()) == 2 * 4 * 4 * 8 * 8
