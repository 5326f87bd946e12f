"""The curve of a training: its loss, and the error on images held out, step by step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingCurve:
    """What training reported at some of its `steps`.

    `losses` are means over the steps before; `validation` is the SQNR in dB of the quantized graph
    on images that nothing was trained on, the first before any training. Of a model whose outputs
    are dense, it is that of `measure.dense_error`. The weights of `best_step` were `kept`, or none.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    validation: tuple[float, ...]
    best_step: int
    kept: bool
