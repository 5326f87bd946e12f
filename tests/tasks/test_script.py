import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.core.errors import QConvertError
from qconvert.images.frames import Frame
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.heads import Head, Sample
from qconvert.tasks.predictions import ClassMap, Detections
from qconvert.tasks.script import decoder_source
from tests.tasks.encoded_heads import HEADS, SIZE, batch_of
from tests.tasks.test_decoders import MASKS

FULL = Frame(*SIZE, *SIZE)


def run_source(source: str) -> Any:
    """Return the `decode` of a script that is no module of the package."""
    namespace: dict[str, Any] = {"__name__": "script"}
    sys.modules.setdefault("script", type(sys)("script"))
    exec(compile(source, "script", "exec"), namespace)
    return namespace["decode"]


@pytest.mark.parametrize("family", HEADS)
def test_source_of_every_head_decodes_alike(family: str) -> None:
    batch = batch_of(1 if "torchvision" in family else 3)
    outputs = HEADS[family][2](batch)
    _, head = find_decoder(Sample(outputs, SIZE))
    source = decoder_source(head)
    assert "qconvert" not in source
    expected = decode(outputs, head, [FULL] * len(batch))
    for result, detections in zip(run_source(source)(outputs, SIZE), expected, strict=True):
        assert isinstance(detections, Detections)
        visible = (
            (result.boxes[:, :2] < SIZE).all(axis=1)
            & (result.boxes[:, 2:] > 0).all(axis=1)
            & (result.boxes[:, :2] < result.boxes[:, 2:]).all(axis=1)
        )
        assert (np.clip(result.boxes[visible], 0, [*SIZE, *SIZE]) == detections.boxes).all()
        assert (result.scores[visible] == detections.scores).all()
        assert (result.classes[visible] == detections.classes).all()


@pytest.mark.parametrize("kind", MASKS)
def test_source_of_every_mask_decodes_alike(kind: str) -> None:
    outputs = MASKS[kind][0]
    _, head = find_decoder(Sample(outputs, SIZE))
    results = run_source(decoder_source(head))(outputs, SIZE)
    for result, expected in zip(results, decode(outputs, head, [FULL] * 3), strict=True):
        assert isinstance(expected, ClassMap)
        assert (result == expected.classes).all()


def test_source_needs_only_numpy(tmp_path: Path) -> None:
    batch = batch_of(3)
    outputs = HEADS["v8"][2](batch)
    _, head = find_decoder(Sample(outputs, SIZE))
    script = tmp_path / "script.py"
    np.savez(tmp_path / "outputs.npz", **outputs)  # type: ignore[arg-type]
    script.write_text(
        decoder_source(replace(head, threshold=0.1, limit=5))
        + "\noutputs = dict(np.load('outputs.npz'))\n"
        + f"print([len(objects.scores) for objects in decode(outputs, {SIZE})])\n"
        + "import sys\nprint('qconvert' in sys.modules, 'PIL' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split("\n")[:2] == ["[4, 0, 5]", "False False"]


def test_function_of_the_user_has_no_source() -> None:
    with pytest.raises(QConvertError, match="`own:function` is not known to need NumPy alone"):
        decoder_source(Head("own:function", "user", (), ""))
