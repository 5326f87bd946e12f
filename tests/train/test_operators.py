"""Every operator of the table computes what ONNX Runtime computes, and passes gradients on."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qconvert.backends.ort import open_cpu
from qconvert.core.errors import QConvertError
from qconvert.train.operators import OPERATORS, find_obstacle, read_attributes, require_operators
from tests.models import floats, tiny
from tests.train.operator_cases import Case, cases

CASES = list(cases())
# How many inputs have a gradient; the others are settings, or statistics.
LEARNABLE = {"Resize": 1, "Dropout": 1, "Pad": 1, "Clip": 1, "BatchNormalization": 3}


def node_of(case: Case) -> tuple[ir.Node, list[ir.Value]]:
    """Return the node of a case and the inputs of its graph."""
    inputs: list[ir.Value | None] = [
        None
        if array is None
        else ir.Value(
            name=f"x{slot}",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        for slot, array in enumerate(case.inputs)
    ]
    node = ir.node(case.op, inputs, case.attributes, num_outputs=case.outputs)
    for slot, value in enumerate(node.outputs):
        value.name = f"y{slot}"
    return node, [value for value in inputs if value is not None]


def expected_outputs(case: Case) -> list[Any]:
    node, inputs = node_of(case)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": case.opset})
    run = open_cpu(ir.Model(graph, ir_version=10))
    feeds = {f"x{slot}": array for slot, array in enumerate(case.inputs) if array is not None}
    outputs = run(feeds)
    return [outputs[f"y{slot}"] for slot in range(case.outputs)]


def compute(case: Case, inputs: list[torch.Tensor | None]) -> list[torch.Tensor]:
    node, _ = node_of(case)
    assert find_obstacle(node) == ""
    attributes = {**read_attributes(node), "outputs": case.outputs}
    results = OPERATORS[case.op](attributes, *inputs)
    return list(results) if isinstance(results, tuple) else [results]


def tensors(case: Case) -> list[torch.Tensor | None]:
    return [None if array is None else torch.from_numpy(np.array(array)) for array in case.inputs]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_computes_what_onnx_runtime_computes(case: Case) -> None:
    for result, expected in zip(compute(case, tensors(case)), expected_outputs(case), strict=True):
        assert result.numpy().dtype == expected.dtype
        assert result.shape == expected.shape
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.smooth], ids=str)
def test_gradient_is_the_slope_of_the_outputs(case: Case) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [
        value.double() if value is not None and value.is_floating_point() else value
        for value in tensors(case)
    ]
    directions = {
        slot: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for slot, value in enumerate(inputs[: LEARNABLE.get(case.op)])
        if value is not None and value.is_floating_point()
    }

    def move(size: float | torch.Tensor) -> torch.Tensor:
        moved = list(inputs)
        for slot, direction in directions.items():
            value = inputs[slot]
            assert value is not None
            moved[slot] = value + size * direction
        first = compute(case, moved)[0]
        weights = torch.arange(first.numel(), dtype=torch.float64).cos().reshape(first.shape)
        return (first * weights).sum()

    size = torch.zeros((), dtype=torch.float64, requires_grad=True)
    move(size).backward()  # type: ignore[no-untyped-call]
    assert size.grad is not None
    slope = (move(1e-6) - move(-1e-6)) / 2e-6
    np.testing.assert_allclose(float(size.grad), float(slope), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("Resize", {"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
        ("Resize", {"mode": "linear", "antialias": 1}, "antialias"),
        ("Resize", {"keep_aspect_ratio_policy": "not_larger"}, "not_larger"),
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 1]}, "dilations"),
        ("NonMaxSuppression", {}, "NonMaxSuppression"),
    ],
)
def test_attribute_without_a_function_is_an_obstacle(
    op: str, attributes: dict[str, Any], reason: str
) -> None:
    node, _ = node_of(Case(op, (floats(2, 4, 7, 6),), attributes))
    assert reason in find_obstacle(node)


def test_operators_of_old_opsets_are_refused() -> None:
    model = tiny()
    model.graph.opset_imports[""] = 11
    with pytest.raises(QConvertError, match="opset 11"):
        require_operators(model)


def test_every_operator_of_the_table_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPERATORS)
