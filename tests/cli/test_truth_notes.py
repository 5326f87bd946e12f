"""Notes of `qconvert evaluate` on the truth that it reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Outcome, write
from tests.image_files import draw_images
from tests.models import floats, from_text

SEGMENTER = """
<ir_version: 10, opset_import: ["": 20]>
segmenter (float[N, 3, 12, 12] image) => (float[N, 2, 12, 12] scores)
{
    scores = Conv (image, weight)
}
"""


@pytest.mark.slow
def test_note_names_the_truth_of_this_call_and_not_of_a_cached_one(
    tmp_path: Path, qconvert: Callable[..., Outcome]
) -> None:
    write(from_text(SEGMENTER, weight=floats(2, 3, 1, 1)), tmp_path / "net.onnx")
    for folder in ("a", "b"):
        images = draw_images(tmp_path / folder / "images", 2)
        (tmp_path / folder / "masks").mkdir()
        for image in images.iterdir():
            mask = Image.fromarray(np.eye(12, dtype=np.uint8))
            mask.save(tmp_path / folder / "masks" / image.name)
    for folder, cached in (("a", False), ("b", True)):
        outcome = qconvert("evaluate", "net.onnx", "--eval", f"{folder}/images")
        assert outcome.code == 0, outcome.err
        assert f"labels: masks in `{folder}/masks`" in outcome.out
        assert ("cached" in outcome.err) == cached
