"""What tests of half precision ask of a graph and of its answers."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray
from onnx.reference import ReferenceEvaluator

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.tensors import Tensors, random_inputs
from qconvert.graph.fp16.convert import HalfModel, HalfPrecision, convert_to_half
from tests.models import from_text

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
NEWER = '<ir_version: 10, opset_import: ["": 22]>\n'
WIDE = 1e6


def graph(text: str, **weights: ArrayLike) -> ir.Model:
    """Parse ONNX text of opset 20; numbers of Python are float32."""
    return from_text(HEAD + text, **_arrays(weights))


def newer(text: str, **weights: ArrayLike) -> ir.Model:
    """Parse ONNX text of opset 22, in which all that compute have bfloat16."""
    return from_text(NEWER + text, **_arrays(weights))


def halved(
    model: ir.Model, largest: dict[str, float] | None = None, kind: HalfPrecision = "fp16"
) -> HalfModel:
    """Rewrite a model, and see that the result is valid and the model still what it was."""
    before = onnx_io.serialize(model)
    result = convert_to_half(model, kind, largest or {})
    require_valid(result.model)
    assert onnx_io.serialize(model) == before
    again = convert_to_half(model, kind, largest or {})
    assert onnx_io.serialize(again.model) == onnx_io.serialize(result.model)
    return result


def require_valid(model: ir.Model) -> None:
    onnx.checker.check_model(onnx.load_from_string(onnx_io.serialize(model)), full_check=True)


def types(model: ir.Model) -> dict[str, str]:
    made = (value for node in model.graph for value in node.outputs)
    values = (*model.graph.inputs, *model.graph.initializers.values(), *made)
    return {str(value.name): str(value.dtype) for value in values if value.name}


def node(model: ir.Model, op: str) -> ir.Node:
    return next(each for each in model.graph if each.op_type == op)


def read_types(model: ir.Model, op: str) -> list[str | None]:
    return [None if value is None else str(value.dtype) for value in node(model, op).inputs]


def answer(model: ir.Model, feeds: Tensors | None = None) -> NDArray[np.float32]:
    """Return the first output, of the same random images where none are given."""
    given = random_inputs(onnx_io.inputs(model), 2, seed=0) if feeds is None else feeds
    return next(iter(open_cpu(model)(given).values()))


def rounded(model: ir.Model, feeds: Tensors) -> NDArray[np.float32]:
    """Return the first output where every tensor is rounded to its type.

    ONNX Runtime leaves out Casts that undo each other, and on a CPU most operators have them.
    """
    proto = onnx.load_from_string(onnx_io.serialize(model))
    with np.errstate(all="ignore"):
        outputs = ReferenceEvaluator(proto).run(None, feeds)
    assert isinstance(outputs, list)
    return np.asarray(outputs[0])


def require_close(model: ir.Model, other: ir.Model, feeds: Tensors | None = None) -> None:
    np.testing.assert_allclose(answer(other, feeds), answer(model, feeds), rtol=5e-3, atol=5e-3)


def _arrays(weights: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
    return {
        name: np.asarray(given, np.float32 if isinstance(given, float) else None)
        for name, given in weights.items()
    }
