"""ONNX files as sources: shapes change on request, everything else stays."""

from pathlib import Path

import pytest

from qconvert import sources
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import random_inputs
from qconvert.sources import Source
from tests.conftest import write
from tests.models import from_text

TWO = """
<ir_version: 10, opset_import: ["": 20]>
two (float[N, 3, H, W] image, float[N, 1, H, W] mask, float[1] scale) => (float[N, 3, H, W] y) {
    masked = Mul (image, mask)
    y = Mul (masked, scale)
}
"""


def load(path: Path, **export: object) -> Source:
    return sources.load(str(path), ExportConfig(**export))  # type: ignore[arg-type]


def test_model_is_unchanged_by_default(tiny: Path) -> None:
    source = load(tiny)
    assert (source.name, source.run, source.notes) == ("tiny", None, ())
    assert onnx_io.serialize(source.model) == tiny.read_bytes()


@pytest.mark.slow
def test_batch_size_can_be_fixed_and_made_dynamic(tiny: Path, tmp_path: Path) -> None:
    fixed = load(tiny, batch=4)
    assert fixed.inputs[0].shape == (4, 3, 8, 8)
    path = write(fixed.model, tmp_path / "fixed.onnx")
    opened = load(path, batch="dynamic")
    assert opened.inputs[0].shape == ("batch", 3, 8, 8)
    for count in (1, 5):
        outputs = open_cpu(opened.model)(random_inputs(opened.inputs, count, seed=0))
        assert outputs["scores"].shape == (count, 5)


def test_batch_applies_to_all_inputs_that_share_it(tmp_path: Path) -> None:
    path = write(from_text(TWO), tmp_path / "two.onnx")
    source = load(path, batch=2, inputs=("image:1x3x4x4", "mask:1x1x4x4"))
    assert [spec.shape for spec in source.inputs] == [(2, 3, 4, 4), (2, 1, 4, 4), (1,)]
    open_cpu(source.model)(random_inputs(source.inputs, 1, seed=0))


def test_open_sizes_are_set_by_input_options(tmp_path: Path) -> None:
    path = write(from_text(TWO), tmp_path / "two.onnx")
    source = load(path, inputs=("image:1x3x4x4", "mask:1x1x4x4"))
    assert [spec.shape for spec in source.inputs] == [("N", 3, 4, 4), ("N", 1, 4, 4), (1,)]
    with pytest.raises(UsageError, match="no input `photo`"):
        load(path, inputs=("photo:1x3x4x4",))


def test_weights_for_an_onnx_file_are_rejected(tiny: Path) -> None:
    with pytest.raises(UsageError, match="contains its weights"):
        load(tiny, weights="w.pt")


FIXED = {
    "a shape": (
        "net (float[2, 6] x) => (float[2, 6] y) "
        "{ s = Constant <value_ints: ints = [2, 6]> () h = Reshape (x, s) y = Add (h, h) }",
        "cannot run this model",
    ),
    "a sum over images": (
        "net (float[1, 3, 8] x) => (float[3, 8] y) "
        "{ a = Constant <value_ints: ints = [0]> () y = ReduceSum <keepdims: int = 0> (x, a) }",
        "the first axis of `y` does not follow the batch",
    ),
    "a share of all images": (
        "net (float[1, 6] x) => (float[1, 6] y) { y = Softmax <axis: int = 0> (x) }",
        "in another batch it moved `y`",
    ),
}


@pytest.mark.parametrize("batch", ["dynamic", 3])
@pytest.mark.parametrize("cause", FIXED)
def test_graph_that_depends_on_the_batch_size_is_rejected(
    tmp_path: Path, cause: str, batch: str | int
) -> None:
    text, detail = FIXED[cause]
    path = write(
        from_text(f'<ir_version: 10, opset_import: ["": 20]>\n{text}'), tmp_path / "f.onnx"
    )
    with pytest.raises(QConvertError, match="its graph depends on it") as caught:
        load(path, batch=batch)
    assert detail in caught.value.details[0]
    assert caught.value.hint


def test_batch_option_overrides_the_batch_of_an_input_option(tmp_path: Path, tiny: Path) -> None:
    path = write(load(tiny, batch=1).model, tmp_path / "one.onnx")
    assert load(path, batch=4, inputs=("image:4x3x8x8",)).inputs[0].shape == (4, 3, 8, 8)
    with pytest.raises(UsageError, match="a batch of 4"):
        load(path, inputs=("image:4x3x8x8",))
