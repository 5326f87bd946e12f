"""The ranges of a float network on batches of the user's own loop: the summaries of `calibrate`."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import (
    Calibration,
    CalibrationImage,
    Collector,
    Origin,
    require_finite,
    sample_phases,
)
from qconvert.calibrate.summary import Summary
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, batch_size, fixed_batch, pad_batch, tap_name
from qconvert.graph.taps import add_calibration_taps, find_masked_tensors

MIN_IMAGES = 8


class RangeObserver:
    """Collects a summary of every tensor that could be quantized, with ONNX Runtime."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.tapped = model, add_calibration_taps(model)
        self.run = open_cpu(self.tapped.model)
        self.fixed = fixed_batch(onnx_io.inputs(model))
        tensors = self.tapped.tensors
        self.collector = Collector(Calibration(Origin("", tensors, (), {}, "", exact=False)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "RangeObserver":
        copied = copy.copy(self)  # a session of ONNX Runtime has no copy, and needs none
        copied.collector = copy.deepcopy(self.collector, memo)
        return copied

    def add(self, feeds: Tensors) -> None:
        """Add a batch of any size."""
        for part in self._split(feeds):
            first, count = self.collector.image_count, batch_size(part)
            indices, inputs = range(first, first + count), dict(part)
            if self.tapped.phase:
                inputs[self.tapped.phase] = sample_phases(indices)
            outputs = self.run(pad_batch(inputs, self.fixed) if self.fixed else inputs)
            shared = {tap_name("size", tensor) for tensor in self.tapped.tensors}
            rows = {
                name: array if name in shared else array[:count] for name, array in outputs.items()
            }
            self.collector.add(indices, rows)

    def summaries(self) -> dict[str, Summary]:
        """Return the summaries of all batches; refuse too few images, and NaN."""
        if (count := self.collector.image_count) < MIN_IMAGES:
            raise UsageError(
                f"the ranges need at least {MIN_IMAGES} images, and {count} were observed",
                hint="call `module.observe(images)` with a few batches; 100 to 500 images are usual",
            )
        calibration = self.collector.calibration()
        names = tuple(CalibrationImage(f"image {number}", "") for number in range(count))
        calibration = replace(calibration, origin=replace(calibration.origin, images=names))
        require_finite(calibration, find_masked_tensors(self.model.graph))
        return calibration.summaries

    def _split(self, feeds: Tensors) -> Iterator[Tensors]:
        """Yield a batch in the parts that the model takes."""
        count = batch_size(feeds)
        size = 1 if self.tapped.observed.one_image_per_run else self.fixed or count
        for start in range(0, count, size):
            yield {name: array[start : start + size] for name, array in feeds.items()}
