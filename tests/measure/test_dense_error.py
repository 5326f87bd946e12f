"""The error of dense outputs weighs channels by their own scale, and places by their scores."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.core.scales import FloatArray
from qconvert.measure.dense_error import channel_axis, find_dense_outputs
from qconvert.measure.output_error import noise_to_signal, per_image_errors, weighed_noise_to_signal

ANCHORS = 40


def head(images: int = 3, classes: int = 5) -> FloatArray:
    """Draw a head [image, 4 + classes, anchor]: boxes in pixels, and one object of each image."""
    random = np.random.default_rng(0)
    boxes = random.uniform(20, 600, (images, 4, ANCHORS))
    scores = np.full((images, classes, ANCHORS), 1e-5)
    scores[range(images), range(images), range(images)] = 0.8
    return np.concatenate([boxes, scores], axis=1).astype(np.float32)


def error(reference: FloatArray, outputs: FloatArray) -> FloatArray:
    return per_image_errors([{"y": reference}], [{"y": outputs}]).astype(np.float32)


def test_lost_scores_outweigh_boxes_that_moved_by_a_pixel() -> None:
    reference = head()
    without_scores, moved = reference.copy(), reference.copy()
    without_scores[:, 4:] = 0
    moved[:, :4] += 1
    assert error(reference, without_scores).mean() > 100 * error(reference, moved).mean()
    # The plain ratio sees it the other way round.
    lost, shifted = (
        noise_to_signal([{"y": reference}], [{"y": outputs}]) for outputs in (without_scores, moved)
    )
    assert lost < shifted


def test_channels_of_scores_that_no_image_has_do_not_dominate() -> None:
    reference = head()
    outputs = reference.copy()
    outputs[:, 8] *= 10  # 1e-4 where nothing is
    assert error(reference, outputs).max() < 1e-4


def test_boxes_count_where_the_score_is() -> None:
    reference = head()
    at_object, elsewhere = reference.copy(), reference.copy()
    for image in range(3):
        at_object[image, :4, image] += 30
        elsewhere[image, :4, 30] += 30
    assert error(reference, at_object).min() > 100 * error(reference, elsewhere).max() > 0


def test_boxes_of_one_output_are_weighted_by_the_scores_of_another() -> None:
    rows = head().transpose(0, 2, 1)
    boxes, scores = rows[..., :4], rows[..., 4:]
    at_object, elsewhere = boxes.copy(), boxes.copy()
    for image in range(3):
        at_object[image, image] += 30
        elsewhere[image, 30] += 30
    reference = [{"boxes": boxes, "scores": scores}]
    near, far = (
        per_image_errors(reference, [{"boxes": moved, "scores": scores}])
        for moved in (at_object, elsewhere)
    )
    assert near.min() > 100 * far.max() > 0


def test_error_does_not_depend_on_the_unit_of_boxes_or_the_order_of_axes() -> None:
    reference = head()
    noise = np.random.default_rng(1).normal(0, 0.01, reference.shape)
    outputs: FloatArray = (reference + noise).astype(np.float32)
    scaled, scaled_outputs = reference.copy(), outputs.copy()
    scaled[:, :4] *= 7
    scaled_outputs[:, :4] *= 7
    expected = error(reference, outputs).tolist()
    assert error(scaled, scaled_outputs).tolist() == pytest.approx(expected, rel=1e-4)
    turned = error(reference.transpose(0, 2, 1), outputs.transpose(0, 2, 1))
    assert turned.tolist() == pytest.approx(expected, rel=1e-6)


def test_images_that_are_not_finite() -> None:
    reference = head()
    outputs = reference.copy()
    reference[0, 1, 2] = np.nan  # compares with nothing
    outputs[1, 6, 3] = np.inf
    assert error(reference, outputs).tolist() == [0, np.inf, 0]


def test_zero_head_gives_no_error_and_divides_by_nothing() -> None:
    reference = np.zeros((2, 6, ANCHORS), np.float32)
    assert error(reference, reference).tolist() == [0, 0]
    assert error(reference, reference + 1).min() > 0


def test_number_of_boxes_that_changed_is_an_infinite_error() -> None:
    reference = head()
    assert np.isinf(error(reference, reference[:, :, :30])).all()


def test_class_scores_keep_the_plain_ratio() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    outputs = [{"y": scores + 0.1}]
    assert weighed_noise_to_signal([{"y": scores}], outputs) == noise_to_signal(
        [{"y": scores}], outputs
    )


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 84, 8400), 1),
        ((1, 8400, 85), 2),
        ((1, 21, 128, 128), 1),
        ((1, 150, 128, 128), 1),
        ((1, 512, 16, 16), 1),
        ((1, 128, 128, 21), 3),
        ((1, 3, 80, 80, 85), 4),
    ],
)
def test_axis_of_channels(shape: tuple[int, ...], axis: int) -> None:
    assert channel_axis(shape) == axis


def test_integers_and_rows_of_scores_are_not_dense() -> None:
    outputs: dict[str, NDArray[Any]]
    outputs = {"classes": np.zeros((2, 300, 4), np.int64), "logits": np.zeros((2, 10), np.float32)}
    assert find_dense_outputs(outputs) == {}
