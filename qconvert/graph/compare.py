"""Whether two runs on the same inputs say the same, whatever the outputs hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.feeds import Feeds

Array = NDArray[Any]
NUMBERS = "biufcV"
# Numbers that are compared at a time, as doubles: an output may be a third of the memory.
BLOCK = 1 << 20


def unlike(wanted: Feeds, got: Feeds) -> str:
    """Say how the outputs differ in name, type or shape; empty where they do not."""
    if list(wanted) != list(got):
        return f"it renamed the outputs to {', '.join(got)}"
    for name, output in wanted.items():
        before, after = _kind(output), _kind(got[name])
        if before != after:
            return f"it turned `{name}` from {before} to {after}"
    return ""


def apart(wanted: Feeds, got: Feeds, tolerance: float) -> str:
    """Say how two runs differ; empty where they are the same network.

    Numbers may move by `tolerance` of the largest finite one in their tensor. NaN, infinities and
    strings must stay where they are; a sequence is compared tensor by tensor.
    """
    if different := unlike(wanted, got):
        return different
    for name, output in wanted.items():
        for array, other in zip(_arrays(output), _arrays(got[name]), strict=True):
            if moved := _moved(array, other, tolerance):
                return f"it {moved.format(name=name)}"
    return ""


def farthest(wanted: Feeds, got: Feeds) -> float:
    """Return the largest move of a number, as a share of the largest in its tensor.

    It is infinite where the runs differ in more than finite numbers.
    """
    if apart(wanted, got, np.inf):
        return np.inf
    moves = [
        _far(array, other)
        for name, output in wanted.items()
        for array, other in zip(_arrays(output), _arrays(got[name]), strict=True)
        if array.dtype.kind in NUMBERS
    ]
    return max((far / largest if largest else np.inf for far, largest in moves if far), default=0.0)


def _kind(output: object) -> str:
    if isinstance(output, list | dict):
        inner = ", ".join(_kind(each) for each in _arrays(output))
        return f"a sequence of {len(output)} ({inner})"
    if output is None:
        return "nothing"
    array = np.asarray(output)
    return f"{array.dtype}{array.shape}"


def _arrays(output: object) -> list[Array]:
    """Return the tensors of an output: itself, or those of its sequence or map."""
    if isinstance(output, dict):
        output = [*output.keys(), *output.values()]
    if isinstance(output, list):
        return [array for each in output for array in _arrays(each)]
    return [np.asarray(output)]


def _moved(wanted: Array, got: Array, tolerance: float) -> str:
    """Say what moved in a tensor, with `{name}` for its name."""
    if wanted.dtype.kind not in NUMBERS:
        return "" if np.array_equal(wanted, got) else "changed `{name}`"
    if any(said := _differs(a, b) for a, b in _blocks(wanted, got)):
        return said
    far, largest = _far(wanted, got)
    if far <= tolerance * largest or np.isinf(tolerance):
        return ""
    return f"moved `{{name}}` by {far / largest if largest else far:.1e} of its largest value"


def _differs(wanted: Array, got: Array) -> str:
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return "moved the infinite values or NaN of `{name}`"
    if not np.isfinite(got[finite]).all():
        return "made values of `{name}` infinite or NaN"
    return ""


def _far(wanted: Array, got: Array) -> tuple[float, float]:
    """Return the largest move of a finite number, and the largest number."""
    far = largest = 0.0
    for a, b in _blocks(wanted, got):
        finite = np.isfinite(a)
        far = max(far, float(np.abs(a[finite] - b[finite]).max(initial=0.0)))
        largest = max(largest, float(np.abs(a[finite]).max(initial=0.0)))
    return far, largest


def _blocks(wanted: Array, got: Array) -> Iterator[tuple[Array, Array]]:
    for start in range(0, wanted.size, BLOCK):
        a, b = (_numbers(each.reshape(-1)[start : start + BLOCK]) for each in (wanted, got))
        yield a, b


def _numbers(array: Array) -> Array:
    """Return numbers wide enough to subtract; NumPy does not know all types of ONNX by itself."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
