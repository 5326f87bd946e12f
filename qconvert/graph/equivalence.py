"""Check that two networks compute the same, by their outputs on the same inputs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors
from qconvert.graph.names import UniqueNames, tensor_names

OutputArray = NDArray[Any]
NUMERIC_KINDS = "biufcV"
# Values are compared as doubles, this many at a time: an output may be a third of the memory.
BLOCK_SIZE = 1 << 20
# About four units in the last place of float32.
PERTURBATION = np.float32(1 + 2**-21)


def describe_signature_difference(expected: Tensors, actual: Tensors) -> str:
    """Say how the outputs differ in name, type or shape; empty where they do not."""
    if list(expected) != list(actual):
        return f"it renamed the outputs to {', '.join(actual)}"
    for name, output in expected.items():
        before, after = _signature(output), _signature(actual[name])
        if before != after:
            return f"it turned `{name}` from {before} to {after}"
    return ""


def describe_difference(expected: Tensors, actual: Tensors, tolerance: float) -> str:
    """Say how two runs differ; empty where they are of the same network.

    Numbers may move by `tolerance` of the largest finite one in their tensor. NaN, infinities and
    strings must stay as they are; a sequence is compared tensor by tensor.
    """
    if difference := describe_signature_difference(expected, actual):
        return difference
    for name, before, after in _array_pairs(expected, actual):
        if before.dtype.kind not in NUMERIC_KINDS:
            if not np.array_equal(before, after):
                return f"it changed `{name}`"
            continue
        for block, other in _blocks(before, after):
            finite = np.isfinite(block)
            if not np.array_equal(block[~finite], other[~finite], equal_nan=True):
                return f"it moved the infinite values or NaN of `{name}`"
            if not np.isfinite(other[finite]).all():
                return f"it made values of `{name}` infinite or NaN"
        error, largest = _max_error(before, after)
        if error > tolerance * largest and not np.isinf(tolerance):
            share = error / largest if largest else error
            return f"it moved `{name}` by {share:.1e} of its largest value"
    return ""


def max_relative_error(expected: Tensors, actual: Tensors) -> float:
    """Return the largest error of a value, relative to the largest value of its tensor.

    It is infinite where the runs differ in more than finite numbers.
    """
    if describe_difference(expected, actual, np.inf):
        return np.inf
    errors = [
        _max_error(before, after)
        for _, before, after in _array_pairs(expected, actual)
        if before.dtype.kind in NUMERIC_KINDS
    ]
    return max(
        (error / largest if largest else np.inf for error, largest in errors if error), default=0.0
    )


def perturb_inputs(model: ir.Model) -> ir.Model | None:
    """Return a copy that scales its inputs by `PERTURBATION`, or None where none is float32.

    Its outputs differ as those of the same network do when it is computed in another order: the
    noise of float32, for which no pass is to blame.
    """
    perturbed = model.clone()
    graph, names = perturbed.graph, UniqueNames(tensor_names(model.graph))
    inputs = [value for value in graph.inputs if value.dtype is ir.DataType.FLOAT and value.uses()]
    if not inputs or not len(graph):
        return None
    name = names.reserve("qconvert.perturbation")
    factor = ir.Value(name=name, const_value=ir.tensor(PERTURBATION, name=name))
    factor.shape, factor.dtype = ir.Shape([]), ir.DataType.FLOAT
    graph.register_initializer(factor)
    for value in inputs:
        scaling = ir.node("Mul", [value, factor])
        scaling.outputs[0].name = names.reserve(f"{value.name}.perturbed")
        for node, slot in list(value.uses()):
            if node is not scaling:
                node.replace_input_with(slot, scaling.outputs[0])
        graph.insert_before(graph[0], scaling)
    return perturbed


def _signature(output: object) -> str:
    if isinstance(output, list | dict):
        inner = ", ".join(_signature(array) for array in _arrays(output))
        return f"a sequence of {len(output)} ({inner})"
    if output is None:
        return "nothing"
    array = np.asarray(output)
    return f"{array.dtype}{array.shape}"


def _array_pairs(
    expected: Tensors, actual: Tensors
) -> Iterator[tuple[str, OutputArray, OutputArray]]:
    for name, output in expected.items():
        for before, after in zip(_arrays(output), _arrays(actual[name]), strict=True):
            yield name, before, after


def _arrays(output: object) -> list[OutputArray]:
    """Return the tensors of an output: itself, or those of its sequence or map."""
    if isinstance(output, dict):
        output = [*output.keys(), *output.values()]
    if isinstance(output, list):
        return [array for item in output for array in _arrays(item)]
    return [np.asarray(output)]


def _max_error(expected: OutputArray, actual: OutputArray) -> tuple[float, float]:
    """Return the largest error of a finite value, and the largest finite value."""
    error = largest = 0.0
    for before, after in _blocks(expected, actual):
        finite = np.isfinite(before)
        error = max(error, float(np.abs(before[finite] - after[finite]).max(initial=0.0)))
        largest = max(largest, float(np.abs(before[finite]).max(initial=0.0)))
    return error, largest


def _blocks(
    expected: OutputArray, actual: OutputArray
) -> Iterator[tuple[OutputArray, OutputArray]]:
    """Yield both in blocks of a type wide enough to subtract."""
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    for start in range(0, expected.size, BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        yield expected.reshape(-1)[block].astype(wide), actual.reshape(-1)[block].astype(wide)
