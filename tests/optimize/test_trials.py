"""Trials outlive a kill, line by line, and measure what their predictions lose."""

import json
from pathlib import Path

import numpy as np
import pytest

from qconvert.measure.mixed_result import LossMeasure
from qconvert.optimize.mixed_precision import (
    SearchImages,
    choose_metric,
    measure_loss,
    open_trials,
    record_trial,
)

FILE = Path("out/trials.jsonl")
PROBABILITIES = [[[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]], [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]]
REFERENCE = [{"scores": np.log(np.array(batch, np.float32))} for batch in PROBABILITIES]


def with_labels(*labels: int | None) -> SearchImages:
    return SearchImages("all", [], REFERENCE, labels)


NO_LABELS = with_labels(*[None] * 4)


def test_trial_is_written_at_once_and_read_again() -> None:
    record = {"far": [0.1, float("inf")]}
    open_trials(FILE, "model").put("a", record)
    lines = [json.loads(line) for line in FILE.read_text().splitlines()]
    assert lines == [{"subject": "model"}, {"trial": "a", **record}]
    assert open_trials(FILE, "model").records == {"a": record}


def test_trials_of_another_subject_are_dropped() -> None:
    open_trials(FILE, "other").put("a", {"far": [1]})
    assert open_trials(FILE, "model").records == {}
    assert FILE.read_text() == '{"subject": "model"}\n'


@pytest.mark.parametrize("torn", ['{"trial": "b", "fa', '{"trial": "b"}x', "\x00\x00\x00"])
def test_unfinished_line_is_dropped(torn: str) -> None:
    open_trials(FILE, "model").put("a", {"far": [1]})
    with FILE.open("a") as file:
        file.write(torn)
    assert open_trials(FILE, "model").records == {"a": {"far": [1]}}
    open_trials(FILE, "model").put("b", {"far": [2]})
    assert set(open_trials(FILE, "model").records) == {"a", "b"}


def predicting(*classes: int) -> list[dict[str, np.ndarray]]:
    scores = np.eye(3, dtype=np.float32)[list(classes)]
    return [{"scores": scores[:2]}, {"scores": scores[2:]}]


def test_changed_prediction_loses_the_probability_that_fp32_gives_up() -> None:
    record = record_trial(NO_LABELS, predicting(0, 1, 2, 0))
    assert record["changed"] == [1]
    assert record["given_up"] == [pytest.approx(0.1)]
    loss = measure_loss(record, "certainty")
    assert loss.pp == pytest.approx(2.5)
    assert loss.agreement == 75.0
    assert measure_loss(record, "agreement").pp == pytest.approx(25)


def test_loss_by_labels_counts_predictions_that_became_right() -> None:
    record = record_trial(with_labels(0, 1, 2, 1), predicting(0, 1, 0, 0))
    assert (record["lost"], record["won"]) == ([2], [1])
    assert measure_loss(record, "top-1").pp == 0


def test_interval_has_a_width_if_no_prediction_changed() -> None:
    record = record_trial(NO_LABELS, REFERENCE)
    metrics: tuple[LossMeasure, ...] = ("top-1", "agreement", "certainty")
    for metric in metrics:
        assert measure_loss(record, metric).pp == 0
        assert measure_loss(record, metric).half_width_pp > 10
    assert record["far"] == [0, 0, 0, 0]


def test_scores_that_are_not_finite_give_up_all() -> None:
    outputs = predicting(0, 0, 2, 0)
    outputs[1]["scores"][0] = np.nan
    record = record_trial(NO_LABELS, outputs)
    assert record["given_up"] == [pytest.approx(0.7)]
    assert record["far"][2] == np.inf


def test_labels_count_if_one_image_weighs_no_more_than_the_budget() -> None:
    assert choose_metric(with_labels(*[1] * 200), 0.5) == "top-1"
    assert choose_metric(with_labels(*[1] * 199), 0.5) == "certainty"
    assert choose_metric(with_labels(*[None] * 200), 0.5) == "certainty"
    assert choose_metric(with_labels(*[1] * 200), 0) == "certainty"
