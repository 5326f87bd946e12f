"""The demo's segmenter through a whole build, which learns weights for a minute."""

import json
from collections.abc import Callable

import pytest

from tests.cli.test_demo import require_scored
from tests.conftest import Outcome

pytestmark = pytest.mark.torture


def test_segmenter_is_scored_by_mean_iou(qconvert: Callable[..., Outcome]) -> None:
    outcome = qconvert("demo", "--task", "segment", "--seconds", "0.02", "--json")
    assert outcome.code == 0, outcome.err
    require_scored(json.loads(outcome.out), "segment", "miou", 75)
