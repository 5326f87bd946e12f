"""A method is chosen on evidence: the usual one, unless another is nearer beyond doubt."""

import numpy as np

from qconvert.measure.output_error import ErrorArray, OutputError
from qconvert.optimize.plan_selection import best_method
from qconvert.quantize.ranges import DEFAULT_METHOD


def far(images: ErrorArray, error: float = 0.1) -> OutputError:
    return OutputError(images, error)


IMAGES = np.random.default_rng(0).exponential(1.0, 40)


def test_a_method_that_is_nearer_on_every_image_is_taken() -> None:
    found = best_method(
        {DEFAULT_METHOD: far(IMAGES), "entropy": far(IMAGES * 0.9), "minmax": far(IMAGES * 1.1)}
    )
    assert found.method == "entropy"
    assert [each.method for each in found.tried] == ["entropy", DEFAULT_METHOD, "minmax"]


def test_of_several_better_ones_the_nearest_is_taken() -> None:
    assert (
        best_method(
            {DEFAULT_METHOD: far(IMAGES), "a": far(IMAGES * 0.9), "b": far(IMAGES * 0.8)}
        ).method
        == "b"
    )


def test_a_method_that_is_nearer_by_chance_is_not_taken() -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 40)
    nearer = IMAGES * np.exp(noise - noise.mean() - 0.05)
    assert nearer.mean() < IMAGES.mean()
    assert (
        best_method({DEFAULT_METHOD: far(IMAGES), "minmax": far(nearer)}).method == DEFAULT_METHOD
    )


def test_where_the_usual_one_answers_with_no_numbers_another_is_taken() -> None:
    assert (
        best_method({DEFAULT_METHOD: far(np.full(40, np.inf)), "minmax": far(IMAGES)}).method
        == "minmax"
    )


def test_equal_methods_leave_the_usual_one() -> None:
    assert (
        best_method({DEFAULT_METHOD: far(IMAGES), "minmax": far(IMAGES)}).method == DEFAULT_METHOD
    )


def test_what_is_nearer_on_most_images_but_errs_more_in_all_is_not_taken() -> None:
    assert (
        best_method({DEFAULT_METHOD: far(IMAGES, 0.1), "a": far(IMAGES * 0.9, 0.2)}).method
        == DEFAULT_METHOD
    )
