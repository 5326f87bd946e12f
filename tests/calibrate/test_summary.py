"""A sum is exact to the last bit for any order of its terms."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qconvert.calibrate.summary import ExactSum, sum_exactly

TERMS = st.lists(st.floats(-(2.0**36), 2.0**36, width=32), min_size=1, max_size=40)


def parts(total: ExactSum) -> tuple[int, int]:
    return int(total.coarse[0]), int(total.fine[0])


def summed(terms: list[float]) -> ExactSum:
    return sum_exactly(np.array(terms, dtype=np.float32)[:, np.newaxis])


@given(TERMS)
def test_exact_sum_is_independent_of_order_and_grouping(terms: list[float]) -> None:
    whole = parts(summed(terms))
    shuffled = sorted(terms, key=hash)
    half = len(terms) // 2
    assert parts(summed(shuffled)) == whole
    if half:
        assert parts(summed(shuffled[half:]) + summed(shuffled[:half])) == whole


@given(TERMS)
def test_exact_sum_is_right_to_a_quantum_per_term(terms: list[float]) -> None:
    exact = math.fsum(float(np.float32(term)) for term in terms)
    error = abs(float(summed(terms).to_float()[0]) - exact)
    assert error <= len(terms) * 2.0**-52 + abs(exact) * 2.0**-51


def test_exact_sum_clips_huge_terms() -> None:
    assert summed([1e30]).to_float()[0] == 2.0**36
    assert summed([-1e30]).to_float()[0] == -(2.0**36)
