"""A metric of the user's own: what it may return, and what becomes of it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.measure.accuracy import Accuracy, score_batch, summarize_accuracy, with_task
from qconvert.tasks import own_metric
from qconvert.tasks.detect import DETECT
from qconvert.tasks.own_metric import own_task
from qconvert.tasks.task import TaskScores
from tests.models import floats

Metric = Callable[[str], str]


@pytest.fixture
def metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Metric:
    """Write a module with the body of a function of predictions and truths; return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str) -> str:
        module = f"metric_{tmp_path.name}".replace("-", "_")
        text = f"import math\nimport numpy as np\n\ndef score(predictions, truths):\n    {body}\n"
        (tmp_path / f"{module}.py").write_text(text)
        return f"{module}:score"

    return write


def scores_of(
    name: str, before: list[float], after: list[float], truth: float | None
) -> TaskScores:
    task = own_task(name, None)
    rows = [task.compare(old, new, truth) for old, new in zip(before, after, strict=True)]
    return task.summarize(rows)


def test_first_number_is_the_metric_and_its_change_has_an_interval(metric: Metric) -> None:
    name = metric("return {'mean': sum(predictions) / len(predictions), 'share': np.float32(0.5)}")
    scores = scores_of(name, [0.5] * 40, [0.5, 0.25] * 20, 1.0)
    assert list(scores.metrics.items()) == [("mean", 0.375), ("share", 0.5)]
    assert scores.change == -0.125
    resampled, added = 0.125 / math.sqrt(40), math.sqrt(2) / 42
    assert scores.half_width == pytest.approx(1.96 * math.hypot(resampled, added), rel=0.1)
    assert (scores.labelled, scores.agreement, scores.notes) == (40, None, ())


def test_one_image_without_truth_is_scored(metric: Metric) -> None:
    scores = scores_of(
        metric("return {'n': len(truths), 'none': truths == [None]}"), [1], [2], None
    )
    assert scores.metrics == {"n": 1, "none": 1}
    assert (scores.change, scores.labelled) == (0, 0)
    assert scores.half_width is not None


def test_report_names_the_first_metric_as_primary(metric: Metric) -> None:
    task = own_task(metric("return {'wide': 0.25, 'map': 0.75}"), None)
    rows = [task.compare(None, None, None)] * 4
    outputs = {"y": floats(4, 3, 2, 2)}
    base = summarize_accuracy(score_batch(outputs, outputs, [None] * 4))
    accuracy: Accuracy = with_task(base, task, task.summarize(rows))
    assert (accuracy.task, accuracy.primary) == ("any", "wide")
    assert accuracy.metrics == {"wide": 0.25, "map": 0.75}
    assert accuracy.change_pp == 0


def test_metric_beside_a_task_keeps_its_agreement(metric: Metric) -> None:
    task = own_task(metric("return {'a': 1.0}"), DETECT)
    assert (task.name, task.primary) == ("detect", "")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return None", "returned NoneType, not a dict of numbers"),
        ("return 0.5", "returned float, not a dict of numbers"),
        ("return {}", "returned an empty dict"),
        ("return {'a': 'x'}", "returned str as `a`, not a finite number"),
        ("return {'a': math.nan}", "returned nan as `a`"),
        ("return {'a': 1.0, 'b': math.inf}", "returned inf as `b`"),
        ("return {'a': np.array([1.0])}", "returned ndarray as `a`"),
        (
            "return {'old' if predictions[0] < 1 else 'new': 0.5}",
            "returned `old` for FP32 and `new`",
        ),
    ],
)
def test_other_results_are_refused(body: str, problem: str, metric: Metric) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        scores_of(metric(body), [0.5] * 3, [1.5] * 3, None)
    assert caught.value.hint == own_metric.PURPOSE


@pytest.mark.parametrize(
    "body", ["raise ValueError('no such thing')", "raise SystemExit('no such')"]
)
def test_error_of_the_function_is_shown_with_its_line(body: str, metric: Metric) -> None:
    with pytest.raises(QConvertError, match="no such") as caught:
        scores_of(metric(body), [1], [1], None)
    assert body in caught.value.details[0]


def test_number_beyond_1_has_a_note(metric: Metric) -> None:
    scores = scores_of(metric("return {'ok': 0.5, 'n': 17, 'minus': -1}"), [1], [1], None)
    assert scores.notes == ("`n`, `minus` is not from 0 to 1, as tables of percents expect",)


def test_slow_metric_is_called_fewer_times(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_metric, "MAX_SECONDS", 0.0)
    scores = scores_of(metric("return {'a': sum(predictions)}"), [0.1] * 3, [0.2] * 3, None)
    assert scores.notes == ("the interval is from 20 resamples, as the metric is slow",)


def test_function_that_does_not_exist_is_named(metric: Metric) -> None:
    name = metric("return {}").replace(":score", ":sore")
    with pytest.raises(UsageError, match="has no `sore`; did you mean `score`"):
        own_task(name, None)
