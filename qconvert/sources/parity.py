"""Whether two forms of one network say the same, on the same inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.errors import QConvertError
from qconvert.feeds import Feeds, Run

# Two classes nearer to each other than this share of the largest output are a tie: either is right.
TIE = 1e-5


@dataclass(frozen=True)
class Parity:
    """How far a network's outputs are from the reference, over all inputs and outputs."""

    inputs: int
    max_abs: float
    max_rel: float
    same_top1: int
    has_top1: bool
    worst: str

    def __str__(self) -> str:
        agrees = f"top-1 {self.same_top1}/{self.inputs}" if self.has_top1 else ""
        return ", ".join(filter(None, [agrees, f"relative error {self.max_rel:.1e}"]))

    def holds(self, tolerance: float) -> bool:
        """Whether the two may be called the same network."""
        return self.max_rel <= tolerance and self.same_top1 == self.inputs


@dataclass(frozen=True)
class _Output:
    """One output over all inputs."""

    max_abs: float
    max_rel: float
    agrees: NDArray[np.bool_] | None


def measure(reference: Run, candidate: Run, feeds: Iterable[Feeds]) -> Parity:
    """Run both on every input and compare all outputs."""
    pairs = [(reference(each), candidate(each)) for each in feeds]
    names = list(pairs[0][0])
    compared = {
        name: _compare(
            [first[name] for first, _ in pairs], [_matching(second, name) for _, second in pairs]
        )
        for name in names
    }
    worst = max(compared, key=lambda name: compared[name].max_rel)
    agreeing = [output.agrees for output in compared.values() if output.agrees is not None]
    count = sum(next(iter(first.values())).shape[0] for first, _ in pairs)
    return Parity(
        inputs=count,
        max_abs=max(output.max_abs for output in compared.values()),
        max_rel=compared[worst].max_rel,
        same_top1=int(np.logical_and.reduce(agreeing).sum()) if agreeing else count,
        has_top1=bool(agreeing),
        worst=worst,
    )


def require(parity: Parity, tolerance: float) -> None:
    """Refuse to go on when the two do not say the same."""
    if parity.holds(tolerance):
        return
    top1 = (
        f"top-1 agrees on {parity.same_top1} of {parity.inputs} inputs, " if parity.has_top1 else ""
    )
    raise QConvertError(
        f"the exported ONNX does not say what PyTorch says: {top1}largest difference "
        f"{parity.max_abs:.2g} ({parity.max_rel:.1e} of the largest value) in `{parity.worst}`",
        hint="a branch that depends on data, or a layer that still draws random numbers, is the "
        "usual cause; a looser limit is `--parity-tolerance`",
    )


def _matching(outputs: Feeds, name: str) -> NDArray[np.generic]:
    if name not in outputs:
        raise QConvertError(f"the exported ONNX has no output `{name}`; it has {sorted(outputs)}")
    return outputs[name]


def _compare(wanted: list[NDArray[np.generic]], got: list[NDArray[np.generic]]) -> _Output:
    pairs = list(zip(wanted, got, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return _Output(float("inf"), float("inf"), None)
    largest = max((float(np.abs(a.astype(np.float64)).max(initial=0.0)) for a, _ in pairs))
    apart = max((_distance(a, b) for a, b in pairs))
    relative = apart / largest if largest else (0.0 if apart == 0 else float("inf"))
    agrees = None
    if all(a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f" for a, _ in pairs):
        agrees = np.concatenate([_top1_agrees(a, b, TIE * largest) for a, b in pairs])
    return _Output(apart, relative, agrees)


def _distance(wanted: NDArray[np.generic], got: NDArray[np.generic]) -> float:
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    return float(np.nan_to_num(apart, nan=0.0, posinf=0.0).max(initial=0.0))


def _top1_agrees(
    wanted: NDArray[np.generic], got: NDArray[np.generic], tie: float
) -> NDArray[np.bool_]:
    a = wanted.astype(np.float64)
    rows = np.arange(len(a))
    chosen = a[rows, got.argmax(axis=1)]
    agreeing: NDArray[np.bool_] = a.max(axis=1) - chosen <= tie
    return agreeing
