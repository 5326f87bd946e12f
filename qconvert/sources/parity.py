"""Compare the exported ONNX with the original network on the same inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import RunModel, Tensors

# Scores closer than this share of the largest output are a tie: either class is right.
TIE = 1e-5


@dataclass(frozen=True)
class Parity:
    """The largest error of any output relative to the reference, and the agreement of classes.

    `same_top1` of `rows` have the same class, in the output with the lowest share; without an
    output of scores, both are the number of inputs.
    """

    inputs: int
    max_abs: float
    max_rel: float
    same_top1: int
    rows: int
    has_top1: bool
    worst: str

    def __str__(self) -> str:
        top1 = f"top-1 {self.same_top1}/{self.rows}, " if self.has_top1 else ""
        return f"{top1}relative error {self.max_rel:.1e}"

    def holds(self, tolerance: float) -> bool:
        """Whether the two are the same network."""
        return self.max_rel <= tolerance and self.same_top1 == self.rows


@dataclass(frozen=True)
class _OutputParity:
    """One output over all inputs; `agrees` has a value for every row, None without classes."""

    max_abs: float
    max_rel: float
    agrees: NDArray[np.bool_] | None


def measure(reference: RunModel, candidate: RunModel, feeds: Iterable[Tensors]) -> Parity:
    """Run both on every input and compare all outputs."""
    count = 0
    runs: list[tuple[Tensors, Tensors]] = []
    for batch in feeds:
        count += next((len(array) for array in batch.values() if array.ndim), 1)
        runs.append((reference(batch), candidate(batch)))
    if not runs:
        raise QConvertError(
            "there is no input to compare PyTorch and ONNX on",
            hint="give at least as many images as the model takes at once",
        )
    outputs = {
        name: _compare([(expected[name], _output(actual, name)) for expected, actual in runs])
        for name in runs[0][0]
    }
    worst = max(outputs, key=lambda name: outputs[name].max_rel)
    agreements = [output.agrees for output in outputs.values() if output.agrees is not None]
    agrees = min(agreements, key=lambda rows: float(rows.mean()), default=None)
    return Parity(
        inputs=count,
        max_abs=max(output.max_abs for output in outputs.values()),
        max_rel=outputs[worst].max_rel,
        same_top1=count if agrees is None else int(agrees.sum()),
        rows=count if agrees is None else agrees.size,
        has_top1=agrees is not None,
        worst=worst,
    )


def require(parity: Parity, tolerance: float) -> None:
    """Refuse an export that computes something else than the original."""
    if parity.holds(tolerance):
        return
    items = "inputs" if parity.rows == parity.inputs else "rows"
    top1 = f"top-1 agrees on {parity.same_top1} of {parity.rows} {items}, "
    raise QConvertError(
        f"the outputs of the exported ONNX differ from PyTorch's: {top1 if parity.has_top1 else ''}"
        f"largest error {parity.max_abs:.2g} ({parity.max_rel:.1e} of the largest value) in "
        f"`{parity.worst}`",
        hint="the usual cause is a branch that depends on data, or a layer that still draws random "
        "numbers; `--parity-tolerance` sets a looser limit",
    )


def _output(outputs: Tensors, name: str) -> NDArray[np.generic]:
    if name not in outputs:
        raise QConvertError(
            f"the exported ONNX has no output `{name}`; it has {sorted(outputs)}",
            hint="the network must return the same outputs for every input",
        )
    return outputs[name]


def _compare(pairs: list[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> _OutputParity:
    if any(expected.shape != actual.shape for expected, actual in pairs):
        return _OutputParity(float("inf"), float("inf"), None)
    largest = max(_largest(expected) for expected, _ in pairs)
    error = max(_largest_difference(expected, actual) for expected, actual in pairs)
    relative = error / largest if largest else (float("inf") if error else 0.0)
    agrees = None
    # An output without rows, as of a detector that found nothing, has no classes either.
    if all(
        expected.ndim == 2 and expected.shape[1] > 1 and expected.dtype.kind == "f"
        for expected, _ in pairs
    ):
        rows = [_top1_agrees(expected, actual, TIE * largest) for expected, actual in pairs]
        agrees = np.concatenate(rows)
    return _OutputParity(error, relative, agrees if agrees is not None and agrees.size else None)


def _largest(values: NDArray[np.generic]) -> float:
    """Return the largest finite magnitude: relative to infinity, no error would count."""
    wide = values.astype(np.float64)
    return float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))


def _largest_difference(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> float:
    """Return the largest difference; infinities and NaN must be equal."""
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))


def _top1_agrees(
    expected: NDArray[np.generic], actual: NDArray[np.generic], tie: float
) -> NDArray[np.bool_]:
    """Compare the classes row by row; NaN is never chosen."""
    a, b = (
        np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        for scores in (expected, actual)
    )
    chosen = a[np.arange(len(a)), b.argmax(axis=1)]
    agrees: NDArray[np.bool_] = chosen >= a.max(axis=1) - tie
    return agrees
