"""Weights that keep 8 bits in a plan with fewer: chosen by measured error per number."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.measure.output_error import sqnr_db
from qconvert.optimize.candidate import Candidate
from qconvert.optimize.weight_bits import (
    MAX_SHARE,
    WeightError,
    choose_weights,
    keep_sensitive_weights,
    measure_errors,
)
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import format_plan, parse_plan
from tests.models import floats, mixed
from tests.optimize.calibrated import CACHE, candidate_of
from tests.quantize.quantized_models import model


def narrow_plan(candidate: Candidate, bits: int = 4) -> Plan:
    scheme = replace(candidate.scheme, weights=replace(candidate.scheme.weights, bits=bits))
    summaries = candidate.calibration.training.summaries
    return make_plan(candidate.loaded.model, scheme, summaries, candidate.options)


def network() -> ir.Model:
    """Return a network of a small first layer with wide rows, and large layers behind it."""
    net = model(
        """a = Conv (image, first) r = Relu (a)
        b = Conv (r, second) s = Relu (b) y = Conv (s, third)""",
        "(float[N, 3, 16, 16] image) => (float[] y)",
        first=(8, 3, 1, 1), second=(64, 8, 3, 3), third=(16, 64, 3, 3),
    )  # fmt: skip
    wide = floats(8, 3, 1, 1, seed=3)
    wide[:, 0] *= 30
    net.graph.initializers["first"].const_value = ir.tensor(wide, name="first")
    return net


def test_small_weight_with_a_large_error_keeps_8_bits() -> None:
    candidate = candidate_of(network(), "cpu")
    plan = narrow_plan(candidate)
    kept, (note,) = keep_sensitive_weights(plan, candidate, "default", CACHE)
    bits = [layer.weight.bits for layer in kept.layers.values() if layer.weight is not None]
    assert bits == [8, None, None]
    assert "1 of 3 weights keep 8 bits, 0.2% of all numbers" in note
    batches = list(candidate.holdout_batches())
    exact = open_cpu(candidate.loaded.model)(batches[0])
    before, after = (
        sqnr_db(exact, open_cpu(apply_plan(candidate.loaded.model, row))(batches[0]))
        for row in (plan, kept)
    )
    assert after > before
    assert parse_plan(format_plan(kept), "plan.json") == kept


def test_errors_are_those_of_a_weight_alone() -> None:
    candidate = candidate_of(mixed(), "cpu")
    errors = measure_errors(narrow_plan(candidate), candidate, 8)
    wider = measure_errors(narrow_plan(candidate, 6), candidate, 8)
    assert len(errors) >= 5
    assert all(row.error > 0 for row in errors.values())
    # Two bits more are steps of a quarter, and so a sixteenth of the error.
    ratios = [errors[name].error / wider[name].error for name in errors]
    assert 8 < np.median(ratios) < 40


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"a": (10, 5.0), "b": (990, 5.0)}, ["a"]),  # the other is too large
        ({"a": (10, 1.0), "b": (20, 1.5), "c": (970, 0.1)}, ["a", "b"]),
        ({"a": (10, 99.0), "b": (10, 1.0), "c": (980, 0.0)}, ["a"]),  # the rest makes little
        ({"a": (500, 1.0), "b": (500, 1.0)}, []),
        ({"a": (10, 0.0), "b": (10, 0.0)}, []),
    ],
)
def test_choice_is_by_error_per_number_within_the_share(
    errors: dict[str, tuple[int, float]], expected: list[str]
) -> None:
    rows = {name: WeightError(*row) for name, row in errors.items()}
    kept = choose_weights(rows)
    assert kept == expected
    assert sum(rows[name].size for name in kept) <= MAX_SHARE * sum(
        row.size for row in rows.values()
    )


def test_plan_with_8_bits_and_low_effort_stay_as_they_are() -> None:
    candidate = candidate_of(mixed(), "cpu")
    eight, four = narrow_plan(candidate, 8), narrow_plan(candidate)
    assert keep_sensitive_weights(eight, candidate, "default", CACHE) == (eight, ())
    assert keep_sensitive_weights(four, candidate, "quick", CACHE) == (four, ())
