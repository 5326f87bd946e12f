"""Integers that were searched for are never worse than the nearest, and as good as can be found."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.optimize import coordinate_descent
from qconvert.optimize.coordinate_descent import round_weights
from qconvert.optimize.layer_problem import IDENTITY, LayerProblem, clip_activation
from tests.models import floats


def task(
    inputs: int = 6, outputs: int = 4, *, groups: int = 1, cut: bool = False, seed: int = 0
) -> LayerProblem:
    """Return a layer that reads correlated rows and should answer what it answers in float."""
    rows = floats(groups, 200, inputs, seed=seed) @ floats(groups, inputs, inputs, seed=seed + 1)
    weights = floats(groups, outputs, inputs, seed=seed + 2)
    biases = floats(groups, outputs, seed=seed + 3)
    wanted = weights @ rows.transpose(0, 2, 1) + biases[..., np.newaxis]
    return LayerProblem(
        rows=rows,
        targets=wanted,
        weights=weights,
        steps=np.full((groups, outputs), 0.5, np.float32),
        biases=biases,
        activation=clip_activation(0.0, 6.0) if cut else IDENTITY,
        max_integer=127,
    )


@settings(deadline=None, max_examples=30)
@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 5),
    groups=st.integers(1, 3),
    cut=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_error_never_grows_on_the_rows_that_were_learned_from(
    inputs: int, outputs: int, groups: int, cut: bool, seed: int
) -> None:
    given_task = task(inputs, outputs, groups=groups, cut=cut, seed=seed)
    near, best = round_weights(given_task)
    plain = given_task.relative_error(given_task.nearest, given_task.biases)
    if not cut:  # what a limit hides is looked at where the float weights are
        assert given_task.relative_error(near.integers, near.biases) <= plain * (1 + 1e-5)
        assert given_task.relative_error(best.integers, best.biases) <= plain * (1 + 1e-5)
    exact = given_task.weights / given_task.steps[..., np.newaxis]
    assert (best.integers >= np.floor(exact)).all()
    assert (best.integers <= np.ceil(exact)).all()
    np.testing.assert_array_equal(best.integers, np.rint(best.integers))


def test_it_finds_nearly_the_best_of_all_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinate_descent, "DAMPING", 0.0)
    ratios = []
    for seed in range(20):
        given_task = task(8, 1, seed=10 * seed)
        exact = given_task.weights / given_task.steps[..., np.newaxis]
        sides = [np.array(side, np.float32) for side in itertools.product([0, 1], repeat=8)]
        centred = given_task.rows[0] - given_task.rows[0].mean(axis=0)
        every = [
            np.square(centred @ ((np.floor(exact[0, 0]) + side - exact[0, 0]) * 0.5)).sum()
            for side in sides
        ]
        _, best = round_weights(given_task)
        found = (
            given_task.relative_error(best.integers, best.biases)
            * np.square(given_task.targets).sum()
        )
        near = given_task.relative_error(given_task.nearest, given_task.biases)
        ratios.append((found / min(every), near * np.square(given_task.targets).sum() / min(every)))
    found, nearest = np.median(ratios, axis=0)
    assert found < 1.5
    assert nearest > 1.5 * found


def test_a_bias_makes_the_mean_answer_right() -> None:
    given_task = replace(task(), biases=np.zeros((1, 4), np.float32))
    for answer in round_weights(given_task):
        assert answer.biases is not None
        got = (answer.integers[0] * 0.5) @ given_task.rows[0].T + answer.biases[0][:, np.newaxis]
        np.testing.assert_allclose(got.mean(axis=1), given_task.targets[0].mean(axis=1), atol=1e-4)


def test_a_product_without_a_bias_gets_none() -> None:
    bare = replace(task(), biases=None)
    near, best = round_weights(bare)
    assert near.biases is None
    assert best.biases is None
    assert bare.relative_error(best.integers, None) <= bare.relative_error(bare.nearest, None)


def test_rows_on_which_an_activation_hides_everything_do_not_count() -> None:
    seen = task(cut=True)
    hidden = np.zeros_like(seen.targets)
    hidden[:, :, :100] = -1000.0  # far below the limit, in float and in integers
    biases = np.full((1, 4), -500.0, np.float32)
    quiet = replace(seen, targets=hidden, biases=biases)
    near, best = round_weights(quiet)
    np.testing.assert_array_equal(best.integers, quiet.nearest)
    np.testing.assert_array_equal(best.biases, biases)
    np.testing.assert_array_equal(near.biases, biases)


def test_inputs_that_are_always_zero_keep_the_nearest_integers() -> None:
    given_task = task()
    rows = given_task.rows.copy()
    rows[:, :, 2] = 0.0
    _, best = round_weights(replace(given_task, rows=rows))
    np.testing.assert_array_equal(best.integers[:, :, 2], given_task.nearest[:, :, 2])
    _, idle = round_weights(replace(given_task, rows=np.zeros_like(rows)))
    np.testing.assert_array_equal(idle.integers, given_task.nearest)


def test_the_ends_of_the_grid_are_kept() -> None:
    wide = task()
    narrow = replace(wide, steps=np.full((1, 4), 0.01, np.float32), max_integer=15)
    _, best = round_weights(narrow)
    assert np.abs(best.integers).max() <= 15
