"""A tapped model outputs the extremes, means and samples of its tensors, image by image."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, tap_name
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import PHASE, SAMPLES_PER_TENSOR, TappedModel, add_calibration_taps
from tests.models import floats, from_text, tiny

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
WIDE = HEAD + "net (float[N, 4, 64, 64] x) => (float[N, 4, 64, 64] y) { y = Relu (x) }"
ANY_SIZE = HEAD + "net (float[N, 4, h, w] x) => (float[N, 4, h, w] y) { y = Relu (x) }"


def run(tapped: TappedModel, x: NDArray[np.float32], phase: int = 0, name: str = "x") -> Tensors:
    phases = np.full((len(x), 1), phase, dtype=np.int64)
    return open_cpu(tapped.model)({name: x} | ({PHASE: phases} if tapped.phase else {}))


def of(tapped: TappedModel, outputs: Tensors, tensor: str) -> list[NDArray[np.float32]]:
    """Return low, high, mean and sample of a tensor."""
    return [outputs[tap_name(kind, tensor)] for kind in ("low", "high", "mean", "sample")]


def test_ranges_and_means_are_per_image_and_channel() -> None:
    tapped = add_calibration_taps(infer_shapes(tiny())[0])
    images = floats(3, 3, 8, 8)
    low, high, mean, sample = of(tapped, run(tapped, images, name="image"), "image")
    assert np.array_equal(low, images.min(axis=(2, 3)))
    assert np.array_equal(high, images.max(axis=(2, 3)))
    assert mean == pytest.approx(images.mean(axis=(2, 3)), abs=1e-6)
    assert np.array_equal(sample, images.reshape(3, -1))


def test_tapping_leaves_the_model_unchanged() -> None:
    model = infer_shapes(tiny())[0]
    before = onnx_io.serialize(model)
    add_calibration_taps(model)
    assert onnx_io.serialize(model) == before


def test_sample_depends_on_the_image_index_alone() -> None:
    tapped = add_calibration_taps(from_text(WIDE))
    images = floats(5, 4, 64, 64)
    together = of(tapped, run(tapped, images, phase=9), "x")[3]
    alone = of(tapped, run(tapped, images[3:4], phase=9), "x")[3]
    assert np.array_equal(together[3:4], alone)
    assert not np.array_equal(alone, of(tapped, run(tapped, images[3:4], phase=10), "x")[3])


def test_sample_has_an_odd_stride_through_the_whole_image() -> None:
    tapped = add_calibration_taps(from_text(WIDE))
    order = np.arange(4 * 64 * 64, dtype=np.float32).reshape(1, 4, 64, 64)
    drawn = of(tapped, run(tapped, order, phase=2**32 - 1), "x")[3][0]
    stride = 2 * (order.size // (2 * SAMPLES_PER_TENSOR)) + 1
    assert set(np.diff(drawn)) == {stride}
    assert SAMPLES_PER_TENSOR * 2 / 3 <= drawn.size < 2 * SAMPLES_PER_TENSOR
    assert drawn[0] < stride
    assert drawn[-1] >= order.size - 2 * stride


def test_exact_taps_output_every_value() -> None:
    tapped = add_calibration_taps(from_text(WIDE), exact=True)
    images = floats(2, 4, 64, 64)
    assert tapped.phase is None
    sample = of(tapped, run(tapped, images), "y")[3]
    assert np.array_equal(sample, np.maximum(images, 0).reshape(2, -1))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 80)])
def test_samples_of_dynamic_sizes_are_tensor_values(size: tuple[int, int]) -> None:
    tapped = add_calibration_taps(from_text(ANY_SIZE))
    images = floats(2, 4, *size)
    low, high, _, sample = of(tapped, run(tapped, images, phase=5), "x")
    assert np.array_equal(low, images.min(axis=(2, 3)))
    assert np.array_equal(high, images.max(axis=(2, 3)))
    assert np.isin(sample, images).all()


def test_half_tensors_are_tapped_as_float32() -> None:
    text = HEAD + "net (float16[N, 4, 3, 3] x) => (float16[N, 4, 3, 3] y) { y = Relu (x) }"
    tapped = add_calibration_taps(from_text(text))
    images = floats(2, 4, 3, 3).astype(np.float16)
    low, *_ = of(tapped, open_cpu(tapped.model)({"x": images, PHASE: np.zeros((2, 1), int)}), "x")
    assert low.dtype == np.float32
    assert np.array_equal(low, images.min(axis=(2, 3)))


def test_tokens_are_reduced_to_their_last_axis() -> None:
    text = HEAD + "net (float[N, 5, 6] x) => (float[N, 5, 2] y) { y = MatMul (x, w) }"
    tapped = add_calibration_taps(from_text(text, w=floats(6, 2)))
    tokens = floats(3, 5, 6)
    low, *_ = of(tapped, run(tapped, tokens), "x")
    assert np.array_equal(low, tokens.min(axis=1))


def test_single_image_run_reduces_every_axis_but_channels() -> None:
    text = HEAD + (
        "net (float[N, 4, 6, 6] x) => (float[] y) "
        "{ shape = Constant <value: tensor = int64[2] {-1, 6}> () h = Reshape (x, shape) "
        "r = Sigmoid (h) y = Add (r, r) }"
    )
    tapped = add_calibration_taps(infer_shapes(from_text(text))[0])
    image = floats(1, 4, 6, 6)
    low, high, _, sample = of(tapped, run(tapped, image), "r")
    rows = 1 / (1 + np.exp(-image.reshape(-1, 6)))
    assert low == pytest.approx(rows.min(axis=0)[np.newaxis], rel=1e-5)
    assert high == pytest.approx(rows.max(axis=0)[np.newaxis], rel=1e-5)
    assert sample.shape == (1, rows.size)


def test_mean_is_not_finite_if_a_value_is_not() -> None:
    tapped = add_calibration_taps(from_text(WIDE))
    images = floats(3, 4, 64, 64)
    images[1, 2, 3, 4], images[2, 0, 0, 0] = np.nan, -np.inf
    mean = of(tapped, run(tapped, images), "x")[2]
    assert np.isfinite(mean).all(axis=1).tolist() == [True, False, False]


def test_external_weights_stay_external(tmp_path: Path) -> None:
    ir.save(infer_shapes(tiny())[0], tmp_path / "m.onnx", external_data="m.data")
    tapped = add_calibration_taps(ir.load(tmp_path / "m.onnx"))
    stored = tapped.model.graph.initializers["conv_weight"].const_value
    assert isinstance(stored, ir.ExternalTensor)


def test_old_opset_is_rejected_with_a_hint() -> None:
    model = from_text(WIDE.replace('"": 20', '"": 17'))
    with pytest.raises(QConvertError, match="needs opset 18") as raised:
        add_calibration_taps(model)
    assert "raises the opset" in str(raised.value.hint)


def test_model_with_nothing_to_quantize_is_rejected() -> None:
    text = HEAD + "net (int64[N, 4] x) => (int64[N, 4] y) { y = Abs (x) }"
    with pytest.raises(QConvertError, match="no tensor of this model"):
        add_calibration_taps(from_text(text))
