"""Run a tapped model over images once, and keep a summary of each tensor.

The result depends on the activations alone: not on the size of the batches, their order, or where
the work was interrupted and taken up again.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.calibration import Calibration, merge_calibrations
from qconvert.calibrate.summary_builder import BatchStatistics, SummaryBuilder
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import RunModel, Tensors

IndexedBatch = tuple[Sequence[int], Tensors]  # the places of the images in the list, and the images
TappedOutputs = tuple[Sequence[int], Tensors]  # the same places, and what the tapped model says


class TapOutputs(Protocol):
    """The outputs of a run that tell about one tensor; see `qconvert.graph.taps`."""

    @property
    def tensor(self) -> str:
        """The tensor."""
        ...

    @property
    def low(self) -> str:
        """The least value of each channel of each image."""
        ...

    @property
    def high(self) -> str:
        """The largest."""
        ...

    @property
    def mean(self) -> str:
        """The mean."""
        ...

    @property
    def size(self) -> str:
        """How many values one image has."""
        ...

    @property
    def sample(self) -> str | None:
        """Values drawn from each image; None where the extremes are enough."""
        ...


class TapLayout(Protocol):
    """What the model answers with, and the input that takes a number for each image, if any."""

    @property
    def taps(self) -> Sequence[TapOutputs]:
        """One for each tensor."""
        ...

    @property
    def phase(self) -> str | None:
        """The input that takes the numbers of `phases_of`."""
        ...


def collect(
    batches: Iterable[TappedOutputs],
    taps: TapLayout,
    start: Calibration,
    after_batch: "Callable[[Collector], None] | None" = None,
) -> Calibration:
    """Add what the tapped model answered to `start`; `after` is called after each batch."""
    collector = Collector(taps, start)
    for numbers, outputs in batches:
        collector.add(numbers, outputs)
        if after_batch:
            after_batch(collector)
    return collector.calibration()


def make_tapped_runner(run: RunModel, taps: TapLayout) -> Callable[[IndexedBatch], TappedOutputs]:
    """Return the function from a batch to the answer about it; it may run in several threads."""

    def answer(batch: IndexedBatch) -> TappedOutputs:
        numbers, feeds = batch
        phases = {taps.phase: sample_phases(numbers)} if taps.phase else {}
        return numbers, run({**feeds, **phases})

    return answer


def sample_phases(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return for each image where its sample starts; multiples of the golden ratio spread well."""
    return (np.array(numbers, dtype=np.int64) * 2654435761 % (1 << 32))[:, np.newaxis]


class Collector:
    """Grows by one batch after the other; memory grows by two numbers for an image and tensor."""

    def __init__(self, taps: TapLayout, start: Calibration) -> None:
        self._start = start
        self._growing = {tap.tensor: (tap, SummaryBuilder()) for tap in taps.taps}
        self._numbers: list[int] = []
        self._done = set(start.image_indices.tolist())

    @property
    def image_count(self) -> int:
        """How many images were seen, those of `start` too."""
        return len(self._done)

    def add(self, numbers: Sequence[int], outputs: Tensors) -> None:
        """Add what a run said about the images with these places in the list."""
        known = range(len(self._start.origin.images))
        for tap, _ in self._growing.values():
            _require_image_rows(tap, outputs, len(numbers))
        for number in numbers:
            if number in self._done or number not in known:
                raise ValueError(f"image {number} was counted already, or is not in the list")
            self._done.add(number)
        for tap, growing in self._growing.values():
            growing.add(_batch_statistics(tap, outputs))
        self._numbers.extend(numbers)

    def calibration(self) -> Calibration:
        """Return all that was seen so far."""
        if not self._numbers:
            return self._start
        numbers = np.array(self._numbers, dtype=np.int64)
        order = np.argsort(numbers)
        summaries = {name: growing.summary(order) for name, (_, growing) in self._growing.items()}
        return merge_calibrations(
            self._start, Calibration(self._start.origin, numbers[order], summaries)
        )


def _require_image_rows(tap: TapOutputs, outputs: Tensors, rows: int) -> None:
    names = [name for name in (tap.low, tap.high, tap.mean, tap.sample) if name]
    if any(len(outputs[name]) != rows for name in names):
        raise QConvertError(
            f"`{tap.tensor}` does not keep the images of a batch apart: {rows} went in, "
            f"{len(outputs[tap.low])} came out",
            hint="run one image at a time",
        )


def _batch_statistics(tap: TapOutputs, outputs: Tensors) -> BatchStatistics:
    # Adding zero turns -0.0 into 0.0; of the two, a minimum returns whichever came first.
    lows, highs = outputs[tap.low] + np.float32(0), outputs[tap.high] + np.float32(0)
    sample = outputs[tap.sample] if tap.sample else None
    return BatchStatistics(lows, highs, outputs[tap.mean], sample, int(outputs[tap.size].item()))
