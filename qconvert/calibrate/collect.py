"""Run a tapped model over images once, and keep a summary of each tensor.

The result depends on the activations alone: not on the size of the batches, their order, or where
the work was interrupted and resumed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrate.calibration import Calibration, merge_calibrations
from qconvert.calibrate.summary_builder import BatchStatistics, SummaryBuilder
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import RunModel, Tensors, TensorTap

IndexedBatch = tuple[Sequence[int], Tensors]  # indices of images in the list, and the images
TappedOutputs = tuple[Sequence[int], Tensors]  # the same indices, and the tapped model's outputs


class TapLayout(Protocol):
    """The taps of a model, and the input that takes `sample_phases`, if there is one."""

    @property
    def taps(self) -> Sequence[TensorTap]:
        """One for each tensor."""
        ...

    @property
    def phase(self) -> str | None:
        """The name of the input."""
        ...


def collect(
    batches: Iterable[TappedOutputs],
    layout: TapLayout,
    start: Calibration,
    after_batch: "Callable[[Collector], None] | None" = None,
) -> Calibration:
    """Add the outputs of the tapped model to `start`; `after_batch` is called after each batch."""
    collector = Collector(layout, start)
    for indices, outputs in batches:
        collector.add(indices, outputs)
        if after_batch:
            after_batch(collector)
    return collector.calibration()


def make_tapped_runner(run: RunModel, layout: TapLayout) -> Callable[[IndexedBatch], TappedOutputs]:
    """Return the function from a batch to its outputs; it may run in several threads."""

    def run_tapped(batch: IndexedBatch) -> TappedOutputs:
        indices, feeds = batch
        phases = {layout.phase: sample_phases(indices)} if layout.phase else {}
        return indices, run({**feeds, **phases})

    return run_tapped


def sample_phases(indices: Sequence[int]) -> NDArray[np.int64]:
    """Return where the sample of each image starts; multiples of the golden ratio spread well."""
    return (np.array(indices, dtype=np.int64) * 2654435761 % (1 << 32))[:, np.newaxis]


class Collector:
    """Grows batch by batch; memory grows by two numbers per image and tensor."""

    def __init__(self, layout: TapLayout, start: Calibration) -> None:
        self._start = start
        self._builders = {tap.tensor: (tap, SummaryBuilder()) for tap in layout.taps}
        self._added: list[int] = []
        self._done = set(start.image_indices.tolist())

    @property
    def image_count(self) -> int:
        """The number of images so far, those of `start` included."""
        return len(self._done)

    def add(self, indices: Sequence[int], outputs: Tensors) -> None:
        """Add the outputs for the images with these indices in the list."""
        images = range(len(self._start.origin.images))
        for tap, _ in self._builders.values():
            _require_image_rows(tap, outputs, len(indices))
        for index in indices:
            if index in self._done or index not in images:
                raise ValueError(f"image {index} was counted already, or is not in the list")
            self._done.add(index)
        for tap, builder in self._builders.values():
            builder.add(_batch_statistics(tap, outputs))
        self._added.extend(indices)

    def calibration(self) -> Calibration:
        """Return everything collected so far."""
        if not self._added:
            return self._start
        indices = np.array(self._added, dtype=np.int64)
        order = np.argsort(indices)
        summaries = {name: builder.summary(order) for name, (_, builder) in self._builders.items()}
        added = Calibration(self._start.origin, indices[order], summaries)
        return merge_calibrations(self._start, added)


def _require_image_rows(tap: TensorTap, outputs: Tensors, count: int) -> None:
    names = [name for name in (tap.low, tap.high, tap.mean, tap.sample) if name]
    if any(len(outputs[name]) != count for name in names):
        raise QConvertError(
            f"`{tap.tensor}` mixes the images of a batch: {count} went in, "
            f"{len(outputs[tap.low])} came out",
            hint="run one image at a time",
        )


def _batch_statistics(tap: TensorTap, outputs: Tensors) -> BatchStatistics:
    # Adding zero turns -0.0 into 0.0; of the two, a minimum returns whichever came first.
    lows, highs = outputs[tap.low] + np.float32(0), outputs[tap.high] + np.float32(0)
    sample = outputs[tap.sample] if tap.sample else None
    return BatchStatistics(lows, highs, outputs[tap.mean], sample, int(outputs[tap.size].item()))
