"""What a trial keeps of its answers, and what they lose."""

import numpy as np
import pytest

from qconvert.measure.mixed_result import LossMeasure
from qconvert.optimize.trials import ReferenceOutputs, choose_metric, measure_loss, record_trial

WANTED = [{"scores": np.log(np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]], np.float32))},
          {"scores": np.log(np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]], np.float32))}]  # fmt: skip


def got(*answers: int) -> list[dict[str, np.ndarray]]:
    rows = np.eye(3, dtype=np.float32)[list(answers)]
    return [{"scores": rows[:2]}, {"scores": rows[2:]}]


def test_a_changed_answer_loses_the_probability_that_fp32_gives_up() -> None:
    told = record_trial(ReferenceOutputs(WANTED, [None] * 4), got(0, 1, 2, 0))
    assert told["changed"] == [1]
    assert told["given_up"] == [pytest.approx(0.1)]
    found = measure_loss(told, "certainty")
    assert found.pp == pytest.approx(2.5)
    assert found.agreement == 75.0
    assert measure_loss(told, "agreement").pp == pytest.approx(25)


def test_with_labels_answers_that_became_right_count_too() -> None:
    told = record_trial(ReferenceOutputs(WANTED, [0, 1, 2, 1]), got(0, 1, 0, 0))
    assert (told["lost"], told["won"]) == ([2], [1])
    assert measure_loss(told, "top-1").pp == 0


def test_an_interval_has_a_width_where_nothing_changed() -> None:
    told = record_trial(ReferenceOutputs(WANTED, [None] * 4), WANTED)
    kinds: tuple[LossMeasure, ...] = ("top-1", "agreement", "certainty")
    for by in kinds:
        assert measure_loss(told, by).pp == 0
        assert measure_loss(told, by).half_width_pp > 10
    assert told["far"] == [0, 0, 0, 0]


def test_answers_that_are_not_finite_give_up_all() -> None:
    broken = got(0, 0, 2, 0)
    broken[1]["scores"][0] = np.nan
    told = record_trial(ReferenceOutputs(WANTED, [None] * 4), broken)
    assert told["given_up"] == [pytest.approx(0.7)]
    assert told["far"][2] == np.inf


def test_labels_decide_where_an_image_weighs_no_more_than_the_budget() -> None:
    assert choose_metric(ReferenceOutputs(WANTED, [1] * 200), 0.5) == "top-1"
    assert choose_metric(ReferenceOutputs(WANTED, [1] * 199), 0.5) == "certainty"
    assert choose_metric(ReferenceOutputs(WANTED, [None] * 200), 0.5) == "certainty"
    assert choose_metric(ReferenceOutputs(WANTED, [1] * 200), 0) == "certainty"
