"""A method is chosen on evidence: the usual one, unless another is nearer beyond doubt."""

import numpy as np

from qconvert.pipeline.choosing import chosen
from qconvert.quantize.ranges import USUAL

IMAGES = np.random.default_rng(0).exponential(1.0, 40)


def test_a_method_that_is_nearer_on_every_image_is_taken() -> None:
    found = chosen({USUAL: IMAGES, "entropy": IMAGES * 0.9, "minmax": IMAGES * 1.1})
    assert found.method == "entropy"
    assert [each.method for each in found.tried] == ["entropy", USUAL, "minmax"]


def test_of_several_better_ones_the_nearest_is_taken() -> None:
    assert chosen({USUAL: IMAGES, "a": IMAGES * 0.9, "b": IMAGES * 0.8}).method == "b"


def test_a_method_that_is_nearer_by_chance_is_not_taken() -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 40)
    nearer = IMAGES * np.exp(noise - noise.mean() - 0.05)
    assert nearer.mean() < IMAGES.mean()
    assert chosen({USUAL: IMAGES, "minmax": nearer}).method == USUAL


def test_where_the_usual_one_answers_with_no_numbers_another_is_taken() -> None:
    assert chosen({USUAL: np.full(40, np.inf), "minmax": IMAGES}).method == "minmax"


def test_equal_methods_leave_the_usual_one() -> None:
    assert chosen({USUAL: IMAGES, "minmax": IMAGES}).method == USUAL
