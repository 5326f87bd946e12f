"""Whether two runs on the same inputs say the same, whatever the outputs hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core.tensors import Tensors
from qconvert.graph.names import UniqueNames, tensor_names

OutputArray = NDArray[Any]
NUMERIC_KINDS = "biufcV"
# Numbers that are compared at a time, as doubles: an output may be a third of the memory.
BLOCK_SIZE = 1 << 20


def describe_signature_difference(wanted: Tensors, got: Tensors) -> str:
    """Say how the outputs differ in name, type or shape; empty where they do not."""
    if list(wanted) != list(got):
        return f"it renamed the outputs to {', '.join(got)}"
    for name, output in wanted.items():
        before, after = _signature(output), _signature(got[name])
        if before != after:
            return f"it turned `{name}` from {before} to {after}"
    return ""


def describe_difference(wanted: Tensors, got: Tensors, tolerance: float) -> str:
    """Say how two runs differ; empty where they are the same network.

    Numbers may move by `tolerance` of the largest finite one in their tensor. NaN, infinities and
    strings must stay where they are; a sequence is compared tensor by tensor.
    """
    if different := describe_signature_difference(wanted, got):
        return different
    for name, output in wanted.items():
        for array, other in zip(_arrays(output), _arrays(got[name]), strict=True):
            if moved := _value_difference(array, other, tolerance):
                return f"it {moved.format(name=name)}"
    return ""


def max_relative_error(wanted: Tensors, got: Tensors) -> float:
    """Return the largest move of a number, as a share of the largest in its tensor.

    It is infinite where the runs differ in more than finite numbers.
    """
    if describe_difference(wanted, got, np.inf):
        return np.inf
    moves = [
        _max_error(array, other)
        for name, output in wanted.items()
        for array, other in zip(_arrays(output), _arrays(got[name]), strict=True)
        if array.dtype.kind in NUMERIC_KINDS
    ]
    return max((far / largest if largest else np.inf for far, largest in moves if far), default=0.0)


def _signature(output: object) -> str:
    if isinstance(output, list | dict):
        inner = ", ".join(_signature(each) for each in _arrays(output))
        return f"a sequence of {len(output)} ({inner})"
    if output is None:
        return "nothing"
    array = np.asarray(output)
    return f"{array.dtype}{array.shape}"


def _arrays(output: object) -> list[OutputArray]:
    """Return the tensors of an output: itself, or those of its sequence or map."""
    if isinstance(output, dict):
        output = [*output.keys(), *output.values()]
    if isinstance(output, list):
        return [array for each in output for array in _arrays(each)]
    return [np.asarray(output)]


def _value_difference(wanted: OutputArray, got: OutputArray, tolerance: float) -> str:
    """Say what moved in a tensor, with `{name}` for its name."""
    if wanted.dtype.kind not in NUMERIC_KINDS:
        return "" if np.array_equal(wanted, got) else "changed `{name}`"
    if any(said := _finiteness_difference(a, b) for a, b in _blocks(wanted, got)):
        return said
    far, largest = _max_error(wanted, got)
    if far <= tolerance * largest or np.isinf(tolerance):
        return ""
    return f"moved `{{name}}` by {far / largest if largest else far:.1e} of its largest value"


def _finiteness_difference(wanted: OutputArray, got: OutputArray) -> str:
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return "moved the infinite values or NaN of `{name}`"
    if not np.isfinite(got[finite]).all():
        return "made values of `{name}` infinite or NaN"
    return ""


def _max_error(wanted: OutputArray, got: OutputArray) -> tuple[float, float]:
    """Return the largest move of a finite number, and the largest number."""
    far = largest = 0.0
    for a, b in _blocks(wanted, got):
        finite = np.isfinite(a)
        far = max(far, float(np.abs(a[finite] - b[finite]).max(initial=0.0)))
        largest = max(largest, float(np.abs(a[finite]).max(initial=0.0)))
    return far, largest


def _blocks(wanted: OutputArray, got: OutputArray) -> Iterator[tuple[OutputArray, OutputArray]]:
    for start in range(0, wanted.size, BLOCK_SIZE):
        a, b = (_widened(each.reshape(-1)[start : start + BLOCK_SIZE]) for each in (wanted, got))
        yield a, b


def _widened(array: OutputArray) -> OutputArray:
    """Return numbers wide enough to subtract; NumPy does not know all types of ONNX by itself."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


# About four units in the last place of float32.
PERTURBATION = np.float32(1 + 2**-21)


def perturb_inputs(model: ir.Model) -> ir.Model | None:
    """Return a copy that scales its inputs by next to nothing, or None where no input is float32.

    Its outputs are off as those of the same network are when it is computed in another order.
    """
    shaking = model.clone()
    graph, names = shaking.graph, UniqueNames(tensor_names(model.graph))
    wanted = [each for each in graph.inputs if each.dtype is ir.DataType.FLOAT and each.uses()]
    if not wanted or not len(graph):
        return None
    name = names.reserve("qconvert.shaken.by")
    factor = ir.Value(name=name, const_value=ir.tensor(PERTURBATION, name=name))
    factor.shape, factor.dtype = ir.Shape([]), ir.DataType.FLOAT
    graph.register_initializer(factor)
    for value in wanted:
        moved = ir.node("Mul", [value, factor])
        moved.outputs[0].name = names.reserve(f"{value.name}.shaken")
        for reader, slot in list(value.uses()):
            if reader is not moved:
                reader.replace_input_with(slot, moved.outputs[0])
        graph.insert_before(graph[0], moved)
    return shaking
