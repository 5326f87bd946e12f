"""One pass over the images gives the same summary for any batches and order."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import (
    Calibration,
    CalibrationImage,
    Origin,
    merge_calibrations,
    require_finite,
)
from qconvert.calibrate.calibration import pack_calibration as pack
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import add_calibration_taps
from tests.calibrate.activations import FakeTaps, calibrate, collect, origin, summary_of
from tests.models import floats, tiny

ODD = [0.0, -0.0, 1e-40, 6.0, -3.5, 1e30, 2.0**-130, np.inf, -np.inf, np.nan]


@st.composite
def activations(draw: st.DrawFn) -> FakeTaps:
    """Draw a few tensors with every kind of float in them."""
    images = draw(st.integers(1, 9))
    values = {}
    for name in ("a", "b")[: draw(st.integers(1, 2))]:
        random = np.random.default_rng(draw(st.integers(0, 9)))
        shape = (images, draw(st.integers(1, 3)), draw(st.integers(1, 30)))
        array = random.standard_normal(shape).astype(np.float32)
        array.ravel()[:: draw(st.integers(2, 50))] = draw(st.sampled_from(ODD))
        values[name] = array
    return FakeTaps(values, exact=draw(st.booleans()))


@settings(deadline=None)
@given(activations(), st.data())
def test_summary_is_independent_of_batches_order_and_interruptions(
    taps: FakeTaps, data: st.DataObject
) -> None:
    count = len(origin(taps).images)
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=3)) | {0, count})
    parts = [order[a:b] for a, b in pairwise(cuts)]
    state = Calibration(origin(taps))
    for part in parts:
        state = collect(taps.run, taps, state, taps.batches(part))
    whole = pack(calibrate(taps))
    assert pack(state) == whole
    assert pack(calibrate(taps, *parts)) == whole


@settings(deadline=None)
@given(activations(), st.data())
def test_calibration_parts_merge_in_any_order(taps: FakeTaps, data: st.DataObject) -> None:
    count = len(origin(taps).images)
    owner = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    parts = [[at for at in range(count) if owner[at] == who] for who in range(3)]
    empty = Calibration(origin(taps))
    a, b, c = (calibrate(taps, part) if part else empty for part in parts)
    whole = pack(calibrate(taps))
    assert pack(merge_calibrations(merge_calibrations(a, b), c)) == whole
    assert pack(merge_calibrations(c, merge_calibrations(b, a))) == whole


def test_summary_has_exact_extremes_and_counts_of_all_values() -> None:
    values = floats(4, 5000)
    summary = summary_of(values)
    assert np.array_equal(summary.lows, values.min(axis=1))
    assert np.array_equal(summary.highs, values.max(axis=1))
    assert (summary.low, summary.high) == (values.min(), values.max())
    assert summary.size == values.size
    assert summary.counts.total == values.size - 2 * len(values)


def test_sample_is_a_small_part_of_a_large_image() -> None:
    summary = summary_of(floats(4, 50_000), exact=False)
    assert summary.size == 200_000
    assert 4 * 1300 < summary.counts.total < 4 * 4096


def test_channel_extremes_are_exact() -> None:
    values = floats(50, 3, 40)
    summary = calibrate(FakeTaps({"t": values}), range(20), range(20, 50)).summaries["t"]
    assert np.array_equal(summary.channel_lows, values.min(axis=(0, 2)))
    assert np.array_equal(summary.channel_maxima, np.abs(values).max(axis=(0, 2)))


def test_nonfinite_tensor_is_named_with_its_image() -> None:
    values = {"fine": floats(3, 1, 20), "broken": floats(3, 1, 20, seed=1)}
    values["broken"][1, 0, 4], values["broken"][2, 0, 3:5] = np.nan, -np.inf
    calibration = calibrate(FakeTaps(values, exact=True))
    with pytest.raises(QConvertError, match="`broken` holds values that are not finite") as raised:
        require_finite(calibration)
    assert raised.value.details == (
        "`broken`: 2 of 3 images (first: `1.jpg`); in the sample 1 NaN, 2 infinite",
    )


def test_merge_of_overlapping_parts_is_refused() -> None:
    taps = FakeTaps({"t": floats(4, 1, 9)})
    with pytest.raises(QConvertError, match=r"share 1 images, among them `1\.jpg`"):
        merge_calibrations(calibrate(taps, [0, 1]), calibrate(taps, [1, 2]))


def test_merging_different_origins_names_the_difference() -> None:
    taps = FakeTaps({"t": floats(4, 1, 9)})
    mine = calibrate(taps, [0])
    other = replace(mine, origin=replace(mine.origin, model="n", runtime="other 2"))
    with pytest.raises(QConvertError, match="they differ in model, runtime"):
        merge_calibrations(mine, other)


def test_tensor_that_mixes_images_of_a_batch_is_refused() -> None:
    taps = FakeTaps({"t": floats(4, 1, 9)})

    def mixing(feeds: Tensors) -> Tensors:
        return {name: array[:1] for name, array in taps.run(feeds).items()}

    with pytest.raises(QConvertError, match="mixes the images of a batch: 2 went in, 1"):
        collect(mixing, taps, Calibration(origin(taps)), taps.batches([0, 1]))


def test_missing_images_are_listed_as_runs() -> None:
    state = calibrate(FakeTaps({"t": floats(9, 1, 9)}), [0, 1, 5])
    assert state.missing_images() == [range(2, 5), range(6, 9)]
    assert state.missing_images(range(4, 7)) == [range(4, 5), range(6, 7)]


@pytest.mark.parametrize("exact", [True, False])
def test_taps_of_a_real_network_give_its_exact_statistics(exact: bool) -> None:
    model = infer_shapes(tiny())[0]
    tapped = add_calibration_taps(model, exact=exact)
    images = floats(7, 3, 8, 8)
    listed = tuple(CalibrationImage(f"{at}", "0" * 64) for at in range(7))
    start = Calibration(Origin("m", tapped.tensors, listed, {}, "ort", exact))
    run = open_cpu(tapped.model)
    batches = [(range(at, min(at + 3, 7)), {"image": images[at : at + 3]}) for at in (0, 3, 6)]
    calibration = collect(run, tapped, start, batches)
    scores = open_cpu(model)({"image": images})["scores"]
    assert calibration.summaries["image"].low == images.min()
    assert calibration.summaries["scores"].highs == pytest.approx(scores.max(axis=1), rel=1e-5)
    assert calibration.summaries["scores"].channel_highs == pytest.approx(
        scores.max(axis=0), rel=1e-4
    )
    require_finite(calibration)
