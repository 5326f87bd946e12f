"""The outputs of two networks are equivalent, or their difference is described."""

import numpy as np
import pytest

from qconvert.core.tensors import Tensors
from qconvert.graph.clean import describe_difference

NAN, INF = np.nan, np.inf


def difference(expected: object, actual: object) -> str:
    before: Tensors = {"y": expected}  # type: ignore[dict-item]
    after: Tensors = {"y": actual}  # type: ignore[dict-item]
    return describe_difference(before, after, 1e-4)


@pytest.mark.parametrize(
    "output",
    [
        np.array([1, NAN, INF, -INF], np.float32),
        np.array([NAN, NAN], np.float16),
        np.array(["cat", "dog"], object),
        [np.zeros((2, 3), np.float32), np.ones(1, np.float32)],
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
    ],
)
@pytest.mark.filterwarnings("error")
def test_output_of_any_type_is_equivalent_to_itself(output: object) -> None:
    assert not difference(output, output)


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        (np.array([1.0, NAN]), np.array([NAN, 1.0]), "moved the infinite values or NaN of `y`"),
        (np.array([1.0, INF]), np.array([1.0, -INF]), "moved the infinite values or NaN of `y`"),
        (np.array([1.0, 2.0]), np.array([1.0, NAN]), "made values of `y` infinite or NaN"),
        (np.array([INF, 2.0]), np.array([INF, 2.1]), "moved `y` by 5.0e-02 of its largest"),
        (np.array(["cat"], object), np.array(["dog"], object), "changed `y`"),
        ([np.zeros(2)], [np.ones(2)], "moved `y`"),
        ([np.zeros(2)], [np.zeros(2), np.zeros(2)], "from a sequence of 1"),
        (np.zeros(2, np.float32), np.zeros(2), r"from float32(2,) to float64(2,)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_output_difference_is_described(expected: object, actual: object, message: str) -> None:
    assert message in difference(expected, actual)
