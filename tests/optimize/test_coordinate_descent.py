"""Coordinate descent finds integers next to the weights with a small error, and the best bias."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.backends.ort import open_cpu
from qconvert.optimize.coordinate_descent import (
    IDENTITY,
    Activation,
    LayerProblem,
    find_activation,
    round_weights,
)
from qconvert.quantize.cross_layer import find_sites
from qconvert.quantize.pairs import PAIR_LIMIT, largest_sums
from tests.models import floats
from tests.quantize.quantized_models import model

RELU6 = Activation(lambda values: np.clip(values, 0.0, 6.0), 0.0, 6.0)


def problem_of(
    inputs: int = 6, outputs: int = 4, *, groups: int = 1, clipped: bool = False, seed: int = 0
) -> LayerProblem:
    """Return a layer that reads correlated rows, whose targets are its float outputs."""
    rows = floats(groups, 200, inputs, seed=seed) @ floats(groups, inputs, inputs, seed=seed + 1)
    weights = floats(groups, outputs, inputs, seed=seed + 2)
    biases = floats(groups, outputs, seed=seed + 3)
    return LayerProblem(
        rows=rows,
        targets=weights @ rows.transpose(0, 2, 1) + biases[..., np.newaxis],
        weights=weights,
        steps=np.full((groups, outputs), 0.5, np.float32),
        biases=biases,
        activation=RELU6 if clipped else IDENTITY,
        max_integer=127,
    )


@settings(deadline=None, max_examples=30)
@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 5),
    groups=st.integers(1, 3),
    clipped=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_integers_are_neighbours_of_the_weights_and_no_worse_than_the_nearest(
    inputs: int, outputs: int, groups: int, clipped: bool, seed: int
) -> None:
    problem = problem_of(inputs, outputs, groups=groups, clipped=clipped, seed=seed)
    nearest, best = round_weights(problem)
    error = problem.relative_error(problem.nearest, problem.biases)
    if not clipped:  # the float weights determine which rows count under a limit
        for solution in (nearest, best):
            new_error = problem.relative_error(solution.integers, solution.biases)
            assert new_error <= error * (1 + 1e-5)
    exact = problem.weights / problem.steps[..., np.newaxis]
    assert (best.integers >= np.floor(exact)).all()
    assert (best.integers <= np.ceil(exact)).all()
    np.testing.assert_array_equal(best.integers, np.rint(best.integers))


def test_solution_is_close_to_the_best_of_all_roundings() -> None:
    ratios = []
    for seed in range(20):
        problem = problem_of(8, 1, seed=10 * seed)
        exact = (problem.weights / problem.steps[..., np.newaxis])[0, 0]
        centred = problem.rows[0] - problem.rows[0].mean(axis=0)
        roundings = [
            np.floor(exact) + np.array(up, np.float32) for up in itertools.product([0, 1], repeat=8)
        ]
        optimum = min(np.square(centred @ (up - exact) * 0.5).sum() for up in roundings)
        _, best = round_weights(problem)
        power = np.square(problem.targets).sum()
        error = problem.relative_error(best.integers, best.biases) * power
        nearest = problem.relative_error(problem.nearest, problem.biases) * power
        ratios.append((error / optimum, nearest / optimum))
    error, nearest = np.median(ratios, axis=0)
    assert error < 1.5
    assert nearest > 1.5 * error


def test_bias_gives_the_outputs_the_mean_of_the_targets() -> None:
    problem = replace(problem_of(), biases=np.zeros((1, 4), np.float32))
    for solution in round_weights(problem):
        assert solution.biases is not None
        outputs = (solution.integers[0] * 0.5) @ problem.rows[0].T
        outputs += solution.biases[0][:, np.newaxis]
        np.testing.assert_allclose(outputs.mean(axis=1), problem.targets[0].mean(axis=1), atol=1e-4)


def test_product_without_a_bias_gets_none() -> None:
    problem = replace(problem_of(), biases=None)
    nearest, best = round_weights(problem)
    assert nearest.biases is None
    assert best.biases is None
    error = problem.relative_error(problem.nearest, None)
    assert problem.relative_error(best.integers, None) <= error


def test_rows_clipped_by_activation_do_not_affect_rounding() -> None:
    problem = problem_of(clipped=True)
    targets = np.zeros_like(problem.targets)
    targets[:, :, :100] = -1000.0  # far below the limit, in float and in integers
    biases = np.full((1, 4), -500.0, np.float32)
    problem = replace(problem, targets=targets, biases=biases)
    for solution in round_weights(problem):
        np.testing.assert_array_equal(solution.integers, problem.nearest)
        np.testing.assert_array_equal(solution.biases, biases)


def test_weights_of_inputs_that_are_always_zero_stay_nearest() -> None:
    problem = problem_of()
    rows = problem.rows.copy()
    rows[:, :, 2] = 0.0
    _, best = round_weights(replace(problem, rows=rows))
    np.testing.assert_array_equal(best.integers[:, :, 2], problem.nearest[:, :, 2])
    _, best = round_weights(replace(problem, rows=np.zeros_like(rows)))
    np.testing.assert_array_equal(best.integers, problem.nearest)


def test_integers_stay_within_the_grid() -> None:
    steps = np.full((1, 4), 0.01, np.float32)
    _, best = round_weights(replace(problem_of(), steps=steps, max_integer=15))
    assert np.abs(best.integers).max() <= 15


SIGNATURE = "(float[N, 3, 8, 8] x) => (float[] y)"
ACTIVATIONS = {
    "Relu": "y = Relu (c)",
    "Sigmoid": "y = Sigmoid (c)",
    "HardSigmoid": "y = HardSigmoid (c)",
    "HardSigmoid of its own": "y = HardSigmoid <alpha: float = 0.1667, beta: float = 0.4> (c)",
    "HardSwish": "y = HardSwish (c)",
    "Gelu": "y = Gelu (c)",
    "SiLU": "s = Sigmoid (c) y = Mul (c, s)",
    "HardSwish in two": "s = HardSigmoid (c) y = Mul (s, c)",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_computes_what_the_graph_computes(name: str) -> None:
    net = model(f"c = Conv (x, w) {ACTIVATIONS[name]}", SIGNATURE, w=(3, 3, 1, 1))
    conv = next(node for node in net.graph if node.op_type == "Conv")
    both = net.clone()
    both.graph.outputs.append(next(n for n in both.graph if n.op_type == "Conv").outputs[0])
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)}
    outputs = open_cpu(both)(feeds)
    activated = find_activation(conv).apply(np.asarray(outputs["c"]))
    np.testing.assert_allclose(activated, outputs["y"], atol=1e-3)


def test_activation_limits_exist_for_relu_and_clip_alone() -> None:
    limits = {}
    for name, text in ACTIVATIONS.items():
        net = model(f"c = Conv (x, w) {text}", SIGNATURE, w=(3, 3, 1, 1))
        activation = find_activation(next(iter(net.graph)))
        limits[name] = (activation.low, activation.high)
    assert limits.pop("Relu") == (0.0, math.inf)
    assert set(limits.values()) == {(-math.inf, math.inf)}


@pytest.mark.parametrize(
    "text",
    [
        "y = Add (c, c)",
        "s = Sigmoid (c) y = Add (c, s)",
        "s = Sigmoid (c) t = Mul (c, s) y = Add (t, s)",
        "s = Sigmoid (c) r = Relu (c) y = Mul (r, s)",
    ],
)
def test_readers_other_than_activations_are_ignored(text: str) -> None:
    net = model(f"c = Conv (x, w) {text}", SIGNATURE, w=(3, 3, 1, 1))
    assert find_activation(next(iter(net.graph))) is IDENTITY


def test_clip_limits_may_be_lists_of_one() -> None:
    constants = "l = Constant <value_floats: floats = [0.0]> () "
    constants += "h = Constant <value_floats: floats = [6.0]> () "
    net = model(
        f"{constants} c = Conv (x, w) d = Clip (c, l, h) y = Conv (d, v)",
        SIGNATURE,
        w=(3, 3, 1, 1),
        v=(3, 3, 1, 1),
    )
    conv = next(node for node in net.graph if node.op_type == "Conv")
    assert (find_activation(conv).low, find_activation(conv).high) == (0.0, 6.0)
    assert [site.ceiling for site in find_sites(net.graph)] == [6.0]


@settings(deadline=None, max_examples=30)
@given(
    places=st.integers(1, 40),
    channels=st.integers(1, 5),
    clipped=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pairs_stay_within_their_limit(
    places: int, channels: int, clipped: bool, seed: int
) -> None:
    inputs = places * channels
    problem = problem_of(inputs, clipped=clipped, seed=seed)
    # The largest weight is 127, and many pairs sum to more than the limit.
    steps = np.abs(problem.weights).max(axis=-1) / 127
    problem = replace(problem, weights=np.abs(problem.weights), steps=steps, pair_channels=channels)
    solutions = round_weights(problem)
    errors = [problem.relative_error(row.integers, row.biases) for row in solutions]
    for solution in solutions:
        assert largest_sums(solution.integers, channels).max() <= PAIR_LIMIT
        assert np.abs(solution.integers).max() <= 127
    assert errors[1] <= errors[0] * 1.05
