"""Compare the exported ONNX model with the original network on the same inputs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import RunModel, Tensors

# Scores closer than this share of the largest output are a tie: either class is right.
TIE = 1e-5


@dataclass(frozen=True)
class Parity:
    """The largest error of any output, and how many of the `rows` of scores have the same class.

    Without an output of scores, `same_top1` and `rows` are the number of inputs.
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


def measure(reference: RunModel, candidate: RunModel, feeds: Iterable[Tensors]) -> Parity:
    """Run both on every input and compare all outputs."""
    count = 0
    runs: list[tuple[Tensors, Tensors]] = []
    for batch in feeds:
        count += next((len(array) for array in batch.values() if array.ndim), 1)
        runs.append((reference(batch), candidate(batch)))
    if not runs:
        raise QConvertError(
            "there are no inputs on which to compare PyTorch and ONNX",
            hint="give at least one full batch of images",
        )
    results = {}
    for name in runs[0][0]:
        for _, outputs in runs:
            if name not in outputs:
                raise QConvertError(
                    f"the exported ONNX has no output `{name}`; it has {sorted(outputs)}",
                    hint="the network must return the same outputs for every input",
                )
        results[name] = _compare([(expected[name], outputs[name]) for expected, outputs in runs])
    worst = max(results, key=lambda name: results[name][1])
    # An output without rows, as of a detector that found nothing, has no classes either.
    agreements = [rows for _, _, rows in results.values() if rows is not None and rows.size]
    everywhere = np.ones(count, np.bool_)
    agrees = min(agreements, key=lambda rows: float(rows.mean()), default=everywhere)
    return Parity(
        inputs=count,
        max_abs=max(error for error, _, _ in results.values()),
        max_rel=results[worst][1],
        same_top1=int(agrees.sum()),
        rows=agrees.size,
        has_top1=bool(agreements),
        worst=worst,
    )


def require(parity: Parity, tolerance: float) -> None:
    """Refuse an export that computes something other than the original."""
    if parity.max_rel <= tolerance and parity.same_top1 == parity.rows:
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


def _compare(
    pairs: list[tuple[NDArray[Any], NDArray[Any]]],
) -> tuple[float, float, NDArray[np.bool_] | None]:
    """Return the largest error of an output, absolute and relative to the largest finite value.

    Infinities and NaN must be equal. For scores, also whether each row has the same class.
    """
    if any(expected.shape != actual.shape for expected, actual in pairs):
        return np.inf, np.inf, None
    a, b = (
        np.concatenate([np.ravel(array) for array in arrays]).astype(np.float64)
        for arrays in zip(*pairs, strict=True)
    )
    finite = np.isfinite(a)
    largest, error = float(np.abs(a[finite]).max(initial=0.0)), np.inf
    if np.array_equal(np.where(finite, 0.0, a), np.where(np.isfinite(b), 0.0, b), equal_nan=True):
        error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    relative = error / largest if largest else (np.inf if error else 0.0)
    if not all(x.ndim == 2 and x.shape[1] > 1 and x.dtype.kind == "f" for x, _ in pairs):
        return error, relative, None
    agrees = []
    for pair in pairs:
        a, b = (  # NaN is never chosen
            np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
            for scores in pair
        )
        chosen = a[np.arange(len(a)), b.argmax(axis=1)]
        agrees.append(chosen >= a.max(axis=1) - TIE * largest)
    return error, relative, np.concatenate(agrees)
