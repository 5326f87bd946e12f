"""ONNX Runtime on the CPU, the reference."""

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import random_inputs
from tests import models


def test_outputs_come_by_name() -> None:
    outputs = open_cpu(models.tiny())(random_inputs(onnx_io.inputs(models.tiny()), 3, seed=0))
    assert list(outputs) == ["scores"]
    assert outputs["scores"].shape == (3, 5)


def test_model_with_external_data_runs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = random_inputs(onnx_io.inputs(models.tiny()), 3, seed=0)
    expected = open_cpu(models.tiny())(feeds)
    monkeypatch.setattr(onnx_io, "IN_MEMORY_BYTES", 100)
    np.testing.assert_array_equal(open_cpu(models.tiny())(feeds)["scores"], expected["scores"])


def test_errors_of_the_runtime_are_one_sentence() -> None:
    model = models.tiny()
    model.graph.node(1).op_type = "Nonsense"
    with pytest.raises(QConvertError, match="cannot load this model") as caught:
        open_cpu(model)
    assert "ONNXRuntimeError" not in str(caught.value)
    with pytest.raises(QConvertError, match=r"cannot run this model on image \(1, 3, 8\)"):
        open_cpu(models.tiny())({"image": np.zeros((1, 3, 8), np.float32)})


def test_opening_leaves_the_model_unchanged() -> None:
    model = models.tiny()
    before = ir.to_onnx_text(model)
    open_cpu(model)
    assert ir.to_onnx_text(model) == before
