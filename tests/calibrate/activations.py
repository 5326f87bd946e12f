"""Synthetic activations, and a `run` that returns them as a tapped model does."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import (
    Calibration,
    CalibrationImage,
    Collector,
    Origin,
    sample_phases,
)
from qconvert.calibrate.summary import Summary
from qconvert.core.tensors import RunModel, Tensors, batch_size, tap_name
from qconvert.graph.taps import TappedModel, add_calibration_taps

Floats = NDArray[np.float32]
IndexedBatch = tuple[Sequence[int], Tensors]
SAMPLES = 2048


@dataclass(frozen=True)
class FakeTaps:
    """Taps of tensors with fixed values: an array [images, channels, positions] per tensor."""

    values: dict[str, Floats]
    exact: bool = False

    @property
    def phase(self) -> str | None:
        return None if self.exact else "phase"

    def run(self, feeds: Tensors) -> Tensors:
        """Return the outputs of the images whose positions are fed."""
        outputs: Tensors = {}
        with np.errstate(invalid="ignore"):
            for tensor, everything in self.values.items():
                values = everything[feeds["place"]]
                flat = values.reshape(len(values), -1)
                statistics = {
                    "low": values.min(axis=2),
                    "high": values.max(axis=2),
                    "mean": values.mean(axis=2),
                    "size": np.array([flat.shape[1]]),
                    "sample": flat if self.exact else draw(flat, feeds["phase"]),
                }
                outputs |= {tap_name(kind, tensor): array for kind, array in statistics.items()}
        return outputs

    def batches(self, *parts: Sequence[int]) -> list[IndexedBatch]:
        return [(part, {"place": np.array(part)}) for part in parts]


def draw(flat: Floats, phases: NDArray[np.int64]) -> Floats:
    """Return the sample that the tapped graph takes."""
    stride = 2 * (flat.shape[1] // (2 * SAMPLES)) + 1
    places = phases % stride + np.arange(0, flat.shape[1] - stride + 1, stride)
    return np.take_along_axis(flat, places, axis=1)


def origin(taps: FakeTaps, model: str = "m") -> Origin:
    count = len(next(iter(taps.values.values())))
    images = tuple(CalibrationImage(f"{number}.jpg", f"{number:064x}") for number in range(count))
    tensors = tuple(taps.values)
    return Origin(model, tensors, images, {"resize": 256}, "fake 1.0", taps.exact)


def calibrate(taps: FakeTaps, *parts: Sequence[int]) -> Calibration:
    """Collect the named images batch by batch, or in one batch."""
    everything = range(len(origin(taps).images))
    batches = taps.batches(*(parts or (everything,)))
    return collect(taps.run, taps, Calibration(origin(taps)), batches)


def collect(
    run: RunModel,
    layout: FakeTaps | TappedModel,
    start: Calibration,
    batches: Iterable[IndexedBatch],
) -> Calibration:
    """Add the outputs of `run` for the batches to `start`."""
    collector = Collector(start)
    for indices, feeds in batches:
        phases = {layout.phase: sample_phases(indices)} if layout.phase else {}
        collector.add(indices, run({**feeds, **phases}))
    return collector.calibration()


def summarize(model: ir.Model, images: Tensors) -> Mapping[str, Summary]:
    """Summarize the tensors of a model over a batch of images."""
    tapped, count = add_calibration_taps(model), batch_size(images)
    listed = tuple(CalibrationImage(str(number), "") for number in range(count))
    start = Calibration(Origin("", tapped.tensors, listed, {}, "", exact=False))
    return collect(open_cpu(tapped.model), tapped, start, [(range(count), images)]).summaries


def summary_of(values: Floats, *, exact: bool = True) -> Summary:
    """Summarize one tensor; the first axis is the image."""
    return summary_of_channels(values.reshape(len(values), 1, -1), exact=exact)


def summary_of_channels(values: Floats, *, exact: bool = True) -> Summary:
    """Summarize one tensor of [image, channel, place]."""
    return calibrate(FakeTaps({"t": values}, exact)).summaries["t"]


def silu(values: Floats) -> Floats:
    passed: Floats = values / (1 + np.exp(-values))
    return passed


def with_outliers(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    values = random.standard_normal(shape, dtype=np.float32)
    values[random.random(shape) < 5e-6] *= 25
    return values


Make = Callable[[np.random.Generator, tuple[int, int]], Floats]

SHAPES: dict[str, Make] = {
    "rectified normal": lambda random, shape: np.maximum(
        random.standard_normal(shape, dtype=np.float32), 0
    ),
    "normal": lambda random, shape: random.standard_normal(shape, dtype=np.float32),
    "laplace": lambda random, shape: random.laplace(size=shape).astype(np.float32),
    "student t4": lambda random, shape: random.standard_t(4, shape).astype(np.float32),
    "silu": lambda random, shape: silu(random.normal(0, 3, shape).astype(np.float32)),
    "outliers": with_outliers,
    "clipped at 6": lambda random, shape: np.clip(random.normal(1, 3, shape), 0, 6).astype(
        np.float32
    ),
}
