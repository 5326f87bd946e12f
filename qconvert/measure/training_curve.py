"""The course of a training: its loss, and how near the outputs came to those of FP32."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingCurve:
    """What a training reported at some of its `steps`, the first before any training.

    `losses` are means over the steps before. `validation` is the SQNR in dB of the outputs on
    images held out from the training. Where changes are accepted by another error, of boxes or of
    dense outputs, it is 10 log10(1 / error). The weights after `best_step` were `kept`, or none
    were.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    validation: tuple[float, ...]
    best_step: int
    kept: bool

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.losses) == len(self.validation):
            raise ValueError("a curve has a loss and a validation for each of its steps")
        if self.best_step not in self.steps:
            raise ValueError("the best step is one of the steps")
