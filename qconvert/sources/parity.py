"""Whether two forms of one network say the same, on the same inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError
from qconvert.core.tensors import RunModel, Tensors

# Two classes nearer to each other than this share of the largest output are a tie: either is right.
TIE = 1e-5


@dataclass(frozen=True)
class Parity:
    """How far a network's outputs are from the reference, over all inputs and outputs.

    `same_top1` of `rows` say the same class, in the output where the fewest do; without an output
    of scores, both are the number of inputs.
    """

    inputs: int
    max_abs: float
    max_rel: float
    same_top1: int
    rows: int
    has_top1: bool
    worst: str

    def __str__(self) -> str:
        agrees = f"top-1 {self.same_top1}/{self.rows}" if self.has_top1 else ""
        return ", ".join(filter(None, [agrees, f"relative error {self.max_rel:.1e}"]))

    def holds(self, tolerance: float) -> bool:
        """Whether the two may be called the same network."""
        return self.max_rel <= tolerance and self.same_top1 == self.rows


@dataclass(frozen=True)
class _OutputParity:
    """One output over all inputs."""

    max_abs: float
    max_rel: float
    agrees: NDArray[np.bool_] | None


def measure(reference: RunModel, candidate: RunModel, feeds: Iterable[Tensors]) -> Parity:
    """Run both on every input and compare all outputs."""
    count = 0
    pairs: list[tuple[Tensors, Tensors]] = []
    for each in feeds:
        count += _count(each)
        pairs.append((reference(each), candidate(each)))
    if not pairs:
        raise QConvertError(
            "there is no input to compare PyTorch and ONNX on",
            hint="give at least as many images as the model takes at once",
        )
    compared = {
        name: _compare(
            [first[name] for first, _ in pairs], [_matching(second, name) for _, second in pairs]
        )
        for name in pairs[0][0]
    }
    worst = max(compared, key=lambda name: compared[name].max_rel)
    agreeing = [output.agrees for output in compared.values() if output.agrees is not None]
    fewest = min(agreeing, key=lambda rows: float(rows.mean())) if agreeing else None
    return Parity(
        inputs=count,
        max_abs=max(output.max_abs for output in compared.values()),
        max_rel=compared[worst].max_rel,
        same_top1=count if fewest is None else int(fewest.sum()),
        rows=count if fewest is None else fewest.size,
        has_top1=bool(agreeing),
        worst=worst,
    )


def require(parity: Parity, tolerance: float) -> None:
    """Refuse to go on when the two do not say the same."""
    if parity.holds(tolerance):
        return
    of = "inputs" if parity.rows == parity.inputs else "rows"
    top1 = f"top-1 agrees on {parity.same_top1} of {parity.rows} {of}, " if parity.has_top1 else ""
    raise QConvertError(
        f"the exported ONNX does not say what PyTorch says: {top1}largest difference "
        f"{parity.max_abs:.2g} ({parity.max_rel:.1e} of the largest value) in `{parity.worst}`",
        hint="a branch that depends on data, or a layer that still draws random numbers, is the "
        "usual cause; a looser limit is `--parity-tolerance`",
    )


def _count(feeds: Tensors) -> int:
    """Return how many inputs lie in a batch, by the first array that has a batch."""
    return next((len(array) for array in feeds.values() if array.ndim), 1)


def _matching(outputs: Tensors, name: str) -> NDArray[np.generic]:
    if name not in outputs:
        raise QConvertError(
            f"the exported ONNX has no output `{name}`; it has {sorted(outputs)}",
            hint="the network must give the same outputs for every input",
        )
    return outputs[name]


def _compare(wanted: list[NDArray[np.generic]], got: list[NDArray[np.generic]]) -> _OutputParity:
    pairs = list(zip(wanted, got, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return _OutputParity(float("inf"), float("inf"), None)
    largest = max(_largest(a) for a, _ in pairs)
    apart = max(_largest_difference(a, b) for a, b in pairs)
    relative = apart / largest if largest else (0.0 if apart == 0 else float("inf"))
    agrees = None
    # No row at all, as of a detector that found nothing, is no score either.
    if all(a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f" for a, _ in pairs):
        rows = np.concatenate([_top1_agrees(a, b, TIE * largest) for a, b in pairs])
        agrees = rows if rows.size else None
    return _OutputParity(apart, relative, agrees)


def _largest(values: NDArray[np.generic]) -> float:
    """Return the largest finite value: beside an infinite one, no difference would count."""
    wide = values.astype(np.float64)
    return float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))


def _largest_difference(wanted: NDArray[np.generic], got: NDArray[np.generic]) -> float:
    """Return the largest difference; what is not finite must be the very same."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    same = np.array_equal(finite, np.isfinite(b))
    if not same or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))


def _top1_agrees(
    wanted: NDArray[np.generic], got: NDArray[np.generic], tie: float
) -> NDArray[np.bool_]:
    """Compare the chosen classes row by row; NaN is never chosen."""
    a, b = (
        np.nan_to_num(each.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        for each in (wanted, got)
    )
    chosen = a[np.arange(len(a)), b.argmax(axis=1)]
    agreeing: NDArray[np.bool_] = chosen >= a.max(axis=1) - tie
    return agreeing
