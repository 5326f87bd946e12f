import time

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.tasks.segmentation_metrics import (
    PixelCounts,
    confusion_matrix,
    count_pixels,
    paired_interval,
    pixel_agreement,
    segmentation_scores,
    total_agreement,
)

Mask = NDArray[np.int64]


def random_masks(seed: int, classes: int, share: float = 0.7) -> tuple[Mask, Mask]:
    """Return a mask with ignored pixels, and a prediction that is right in a share of them."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, (12, 9))
    noise = generator.integers(-1, classes + 1, truth.shape)
    prediction = np.where(generator.random(truth.shape) < share, truth, noise)
    truth[generator.random(truth.shape) < 0.1] = 255
    return truth, prediction


def test_scores_are_those_of_a_loop_over_pixels() -> None:
    classes = 5
    masks = [random_masks(seed, classes - 1) for seed in range(8)]
    pairs = [
        (int(true), int(guess))
        for truth, prediction in masks
        for true, guess in zip(truth.flat, prediction.flat, strict=True)
        if true != 255 and guess != -1
    ]
    ious, dices = [], []
    for number in range(classes):
        both = sum(pair == (number, number) for pair in pairs)
        true, guessed = (sum(pair[side] == number for pair in pairs) for side in (0, 1))
        if true + guessed:
            ious.append(both / (true + guessed - both))
            dices.append(2 * both / (true + guessed))
    scores = segmentation_scores([count_pixels(*pair, classes) for pair in masks])
    assert scores.miou == pytest.approx(np.mean(ious))
    assert scores.dice == pytest.approx(np.mean(dices))
    right = sum(true == guess for true, guess in pairs)
    assert scores.pixel_accuracy == pytest.approx(right / len(pairs))
    assert [value for value in scores.class_iou if value is not None] == pytest.approx(ious)


def test_class_that_never_occurs_is_left_out() -> None:
    truth = np.array([[0, 0, 1, 255]])
    scores = segmentation_scores([count_pixels(truth, np.array([[0, 0, 0, 2]]), 4)])
    assert scores.class_iou == (2 / 3, 0.0, None, None)
    assert scores.miou == pytest.approx(1 / 3)
    assert scores.dice == pytest.approx((4 / 5) / 2)
    assert scores.pixel_accuracy == pytest.approx(2 / 3)


def test_prediction_of_no_class_is_wrong_and_one_cut_off_is_not_counted() -> None:
    truth = np.array([[0, 0, 1, 1]])
    confusion = confusion_matrix(truth, np.array([[0, 7, 1, -1]]), 2)
    assert confusion.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_without_pixels_nothing_is_defined() -> None:
    ignored = np.full((3, 3), 255)
    for pictures in ([], [count_pixels(ignored, np.zeros((3, 3), np.int64), 2)]):
        scores = segmentation_scores(pictures)
        assert scores.metrics == {"miou": None, "pixel_accuracy": None, "dice": None}
        assert paired_interval(pictures, pictures) is None


def test_masks_that_do_not_fit_are_refused() -> None:
    truth = np.zeros((3, 4), np.int64)
    with pytest.raises(ValueError, match="a mask of"):
        count_pixels(truth, np.zeros((4, 3), np.int64), 2)
    with pytest.raises(ValueError, match="the mask has class 2, there are 2"):
        count_pixels(truth + 2, truth, 2)


def counts(share: float, pictures: int = 30) -> list[PixelCounts]:
    return [count_pixels(*random_masks(seed, 4, share), 4) for seed in range(pictures)]


def test_interval_is_zero_only_where_predictions_are_equal() -> None:
    truth = np.array([[0, 1, 0, 1]])
    one, other = np.array([[0, 1, 1, 0]]), np.array([[1, 0, 0, 1]])
    before, after = ([count_pixels(truth, mask, 2)] * 5 for mask in (one, other))
    assert segmentation_scores(before) == segmentation_scores(after)
    assert paired_interval(before, before) == 0.0
    half = paired_interval(before, after)
    assert half is not None
    assert half > 0


def test_interval_covers_the_change_between_halves() -> None:
    before, after = counts(0.9), counts(0.7)
    half = paired_interval(before, after)
    assert half is not None
    assert 0 < half < 0.1
    assert half == paired_interval(before, after)
    changes = []
    for part in (slice(None, 15), slice(15, None)):
        miou = [segmentation_scores(side[part]).miou for side in (before, after)]
        assert miou[0] is not None
        assert miou[1] is not None
        changes.append(miou[1] - miou[0])
    assert abs(changes[0] - changes[1]) < 3 * half


def test_pixels_agree_where_both_predict_the_same() -> None:
    one, other = np.array([[0, 1, 2, -1]]), np.array([[0, 1, 1, 1]])
    result = pixel_agreement(one, other)
    assert (result.equal, result.pixels) == (2, 3)
    assert total_agreement([result, pixel_agreement(one, one)]) == 5 / 6
    assert pixel_agreement(one[:, :0], other[:, :0]).share is None
    assert total_agreement([]) is None


def test_picture_of_500_pixels_takes_milliseconds() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 150, (500, 500)).astype(np.uint8)
    prediction = generator.integers(0, 150, (500, 500)).astype(np.int32)
    start = time.process_time()
    for _ in range(5):
        count_pixels(truth, prediction, 150)
    assert (time.process_time() - start) / 5 < 0.1
