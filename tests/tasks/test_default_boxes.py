import numpy as np
import pytest

from qconvert.tasks.default_boxes import anchors_of


@pytest.mark.parametrize(
    ("kind", "size", "count", "first", "last"),
    [
        # torchvision 0.28: AnchorGenerator and DefaultBoxGenerator.
        ("retinanet", (96, 64), 1161, [-23, -11, 23, 11], [-287, -574, 287, 574]),
        ("ssd300", (300, 300), 8732, [-6.5, -6.5, 14.5, 14.5], [57.7226, 0, 242.2774, 300]),
        ("ssdlite320", (320, 320), 3234, [-24, -24, 40, 40], [72.2428, 0, 247.7573, 320]),
    ],
)
def test_anchors_are_those_of_torchvision(
    kind: str, size: tuple[int, int], count: int, first: list[float], last: list[float]
) -> None:
    anchors = anchors_of(kind, size)
    assert anchors.shape == (count, 4)
    assert anchors.dtype == np.float32
    assert anchors[0] == pytest.approx(first, abs=1e-3)
    assert anchors[-1] == pytest.approx(last, abs=1e-3)
