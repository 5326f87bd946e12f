"""Check that two networks compute the same, by their outputs on the same inputs."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors
from qconvert.graph.patterns import UniqueNames, make_initializer, tensor_names

# Values are compared as doubles, this many at a time: an output may be a third of the memory.
BLOCK_SIZE = 1 << 20


def describe_signature_difference(expected: Tensors, actual: Tensors) -> str:
    """Describe how the outputs differ in name, type or shape; empty where they do not."""
    if list(expected) != list(actual):
        return f"it renamed the outputs to {', '.join(actual)}"
    for name, output in expected.items():
        before, after = _signature(output), _signature(actual[name])
        if before != after:
            return f"it turned `{name}` from {before} to {after}"
    return ""


def describe_difference(expected: Tensors, actual: Tensors, tolerance: float) -> str:
    """Describe how two runs differ; empty where they are of the same network.

    Numbers may move by `tolerance` of the largest finite one in their tensor. NaN, infinities and
    strings must stay as they are; a sequence is compared tensor by tensor.
    """
    return _compare(expected, actual, tolerance)[0]


def max_relative_error(expected: Tensors, actual: Tensors) -> float:
    """Return the largest error of a value, relative to the largest value of its tensor.

    It is infinite where the runs differ in more than finite numbers.
    """
    difference, error = _compare(expected, actual, np.inf)
    return np.inf if difference else error


def _compare(expected: Tensors, actual: Tensors, tolerance: float) -> tuple[str, float]:
    """Return the first difference beyond the tolerance, and the largest relative error so far."""
    worst = 0.0
    if difference := describe_signature_difference(expected, actual):
        return difference, worst
    for name, output in expected.items():
        for before, after in zip(_arrays(output), _arrays(actual[name]), strict=True):
            if before.dtype.kind not in "biufcV":
                if not np.array_equal(before, after):
                    return f"it changed `{name}`", worst
                continue
            problem, error, largest = _compare_numbers(before, after)
            if problem:
                return f"it {problem.format(name)}", worst
            relative = error / largest if largest else error
            if error > tolerance * largest:
                return f"it moved `{name}` by {relative:.1e} of its largest value", worst
            worst = max(worst, relative if largest or not error else np.inf)
    return "", worst


def _compare_numbers(before: NDArray[Any], after: NDArray[Any]) -> tuple[str, float, float]:
    """Return the change of NaN and infinities, the largest error, and the largest value."""
    error = largest = 0.0
    # Wide enough to subtract: integers do not wrap around.
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    for start in range(0, before.size, BLOCK_SIZE):
        block, other = (
            array.reshape(-1)[start : start + BLOCK_SIZE].astype(wide) for array in (before, after)
        )
        finite = np.isfinite(block)
        if not np.array_equal(block[~finite], other[~finite], equal_nan=True):
            return "moved the infinite values or NaN of `{}`", error, largest
        if not np.isfinite(other[finite]).all():
            return "made values of `{}` infinite or NaN", error, largest
        error = max(error, float(np.abs(block[finite] - other[finite]).max(initial=0.0)))
        largest = max(largest, float(np.abs(block[finite]).max(initial=0.0)))
    return "", error, largest


def perturb_inputs(model: ir.Model) -> ir.Model | None:
    """Return a copy that scales its inputs by 1 + 2^-21, or None where none is float32.

    That is about four units in the last place. The outputs differ as those of the same network do
    when it is computed in another order: the noise of float32, for which no pass is to blame.
    """
    perturbed = model.clone()
    graph, names = perturbed.graph, UniqueNames(tensor_names(model.graph))
    inputs = [value for value in graph.inputs if value.dtype is ir.DataType.FLOAT and value.uses()]
    if not inputs or not len(graph):
        return None
    number = np.array(1 + 2**-21, np.float32)
    factor = make_initializer(names.reserve("qconvert.perturbation"), number)
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


def _arrays(output: object) -> list[NDArray[Any]]:
    """Return the tensors of an output: itself, or those of its sequence or map."""
    if isinstance(output, dict):
        output = [*output.keys(), *output.values()]
    if isinstance(output, list):
        return [array for item in output for array in _arrays(item)]
    return [np.asarray(output)]
