"""How right the answers of an engine are, and how like those of FP32, over the same images."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Accuracy:
    """Scores over images, in percent; those that need labels are None without.

    `change_pp` is the change of top-1 against FP32 over the same images, with half the width of its
    95 % interval. `sqnr_db` and `kl` compare the outputs with those of FP32. `engine` says that the
    engine itself ran, `cpu-simulation` that its graph did on the CPU.
    """

    images: int
    measured_on: Literal["engine", "cpu-simulation"]
    agreement: float | None
    sqnr_db: float | None
    kl: float | None
    top1: float | None = None
    top5: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    change_pp: float | None = None
    half_width_pp: float | None = None
    notes: tuple[str, ...] = ()
