"""Graphs in half precision for tests: their types and their outputs."""

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
    """Rewrite a model, and check that the result is valid and the model unchanged."""
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
    computed = (value for node in model.graph for value in node.outputs)
    values = (*model.graph.inputs, *model.graph.initializers.values(), *computed)
    return {str(value.name): str(value.dtype) for value in values if value.name}


def node(model: ir.Model, op: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op)


def read_types(model: ir.Model, op: str) -> list[str | None]:
    return [None if value is None else str(value.dtype) for value in node(model, op).inputs]


def first_output(model: ir.Model, feeds: Tensors | None = None) -> NDArray[np.float32]:
    """Return the first output, on the same random images if no inputs are passed."""
    if feeds is None:
        feeds = random_inputs(onnx_io.inputs(model), 2, seed=0)
    return next(iter(open_cpu(model)(feeds).values()))


def rounded_output(model: ir.Model, feeds: Tensors) -> NDArray[np.float32]:
    """Return the first output with every tensor rounded to its type.

    ONNX Runtime leaves out Casts that undo each other, and on a CPU most operators have them.
    """
    proto = onnx.load_from_string(onnx_io.serialize(model))
    with np.errstate(all="ignore"):
        outputs = ReferenceEvaluator(proto).run(None, feeds)
    assert isinstance(outputs, list)
    return np.asarray(outputs[0])


def require_close(model: ir.Model, other: ir.Model, feeds: Tensors | None = None) -> None:
    np.testing.assert_allclose(
        first_output(other, feeds), first_output(model, feeds), rtol=5e-3, atol=5e-3
    )


def _arrays(weights: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
    return {
        name: np.asarray(array, np.float32 if isinstance(array, float) else None)
        for name, array in weights.items()
    }
