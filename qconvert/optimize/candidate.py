"""Candidates for quantization, and the one test that decides whether a change is accepted.

Range methods, equalization and learned weights are all accepted or dropped by the outputs of the
whole model: it runs on images that were held out, and is compared with the FP32 model. How much is
tried, and so how long it takes, is the level of `--effort`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.formats import QuantizedFormat
from qconvert.core.progress import ProgressCallback
from qconvert.core.tensors import Tensors, batch_size, output_array
from qconvert.measure import output_error
from qconvert.measure.output_error import ErrorArray, OutputError
from qconvert.optimize.box_error import BoxReader, find_box_reader
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import AUTO_METHOD, DEFAULT_METHOD, QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.scheme import Scheme
from qconvert.sources import LoadedModel

# Images that per-tensor methods are chosen on; the test of acceptance never sees them.
MAX_TRAINING_IMAGES = 32
# FP32 outputs to hold in memory; images beyond are left out of the comparison.
MAX_OUTPUT_BYTES = 256_000_000


@dataclass(frozen=True)
class OptimizationEffort:
    """What is tried, and on how many images.

    Weights are learned on `training_images`, from at most `rows` of a layer's inputs, and accepted
    by the images held out and at most `holdout_images` in all. `method` is the default for ranges;
    `equalize` turns on cross-layer equalization; `max_macs` bounds the multiplications spent on
    choosing a range method for every tensor.
    """

    training_images: int = 0
    rows: int = 0
    holdout_images: int = 0
    method: str = DEFAULT_METHOD
    equalize: bool = False
    max_macs: float = 0.0


EFFORTS: dict[str, OptimizationEffort] = {
    "none": OptimizationEffort(),
    "quick": OptimizationEffort(training_images=16, rows=512),
    "default": OptimizationEffort(64, 2048, 128, AUTO_METHOD, equalize=True, max_macs=5e12),
    "thorough": OptimizationEffort(192, 8192, 256, AUTO_METHOD, equalize=True, max_macs=4e13),
}


@dataclass(frozen=True)
class Candidate:
    """A model, equalized by the `factors`, its calibration, and how to quantize it."""

    loaded: LoadedModel
    calibration: CalibrationSet
    scheme: Scheme
    options: QuantizeOptions
    max_holdout_images: int
    progress: ProgressCallback
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    precision: QuantizedFormat = "int8"

    def trial_plan(self, options: QuantizeOptions) -> Plan:
        """Return a plan from the ranges of all images but those held out, with 8-bit weights.

        Learned rounding takes away most of the error of weights with fewer bits, which here would
        hide that of the activations.
        """
        summaries, scheme = self.calibration.training.summaries, self.scheme
        scheme = replace(scheme, weights=replace(scheme.weights, bits=8))
        return make_plan(self.loaded.model, scheme, summaries, options, self.precision)

    def output_error(self, options: QuantizeOptions, reference: Sequence[Tensors]) -> OutputError:
        """Return the output error of the model quantized with these options."""
        model = apply_plan(self.loaded.model, self.trial_plan(options))
        return self.compare(model, self.holdout_batches(), reference)

    def compare(
        self, model: ir.Model, batches: Iterable[Tensors], reference: Sequence[Tensors]
    ) -> OutputError:
        """Return the error of a model on the batches of the reference."""
        return compare_outputs(self.loaded, model, batches, reference)

    def describe_images(self, error: OutputError) -> str:
        """Describe the images on which an error was measured."""
        count, held_out = error.per_image.size, self.calibration.validation_count
        if not self.calibration.excludes_holdout:
            return f"on {count} calibration images"
        if count <= held_out:
            return f"on {count} held-out images"
        return f"on {count} images, {held_out} of them held out"

    def holdout_batches(self) -> Iterator[Tensors]:
        """Yield the images held out, and others up to `max_holdout_images` in all."""
        if self.calibration.has_holdout:
            return self.calibration.holdout_batches(MAX_TRAINING_IMAGES, self.max_holdout_images)
        return self.calibration.validation_batches()


def compare_outputs(
    loaded: LoadedModel, model: ir.Model, batches: Iterable[Tensors], reference: Sequence[Tensors]
) -> OutputError:
    """Return the error of a model made from `loaded` on the batches of the reference.

    Where a decoder reads enough boxes from the reference, it is that of the boxes.
    """
    run, outputs, counts = open_cpu(model), list[Tensors](), list[int]()
    reader: BoxReader | None = None
    for batch, expected in zip(batches, reference, strict=False):
        if not outputs:
            reader = find_box_reader(loaded.source.inputs, batch, expected)
        outputs.append(run(batch))
        counts.append(batch_size(batch))
    errors = None if reader is None else reader.errors(reference, outputs, counts)
    if errors is not None:
        return OutputError(errors, float(errors.mean()), np.zeros(1), of_boxes=True)
    return OutputError(
        output_error.per_image_errors(reference, outputs, counts),
        output_error.weighed_noise_to_signal(reference, outputs, counts),
        output_error.prediction_changes(reference, outputs, counts),
    )


def run_reference(model: ir.Model, batches: Iterable[Tensors]) -> list[Tensors]:
    """Return the outputs of the float model, batch by batch, until memory is used up."""
    run, reference, held_bytes = open_cpu(model), list[Tensors](), 0
    for batch in batches:
        outputs = run(batch)
        reference.append(outputs)
        held_bytes += sum(output_array(outputs, name).nbytes for name in outputs)
        if held_bytes > MAX_OUTPUT_BYTES:
            break
    return reference


def is_better(before: OutputError, after: OutputError, *, significantly: bool = True) -> bool:
    """Whether a change lowers the output error: the test that accepts or drops it.

    Both errors are of the same images, so they are compared in pairs. By default the change must be
    significant: the mean gain of sqrt(error) must exceed two standard errors, and the noise-to-signal
    ratio must not rise. Without `significantly`, for weights that were trained to lower the error,
    the ratio must fall, and neither the errors nor the changed predictions of the images may grow
    by more than chance.
    """
    errors, new_errors = before.per_image, after.per_image
    if not significantly:
        # More wrong predictions outweigh a smaller error, and few images show them late.
        return after.noise_to_signal < before.noise_to_signal and not (
            _exceeds_chance(new_errors - errors, 2.0)
            or _exceeds_chance(after.changed - before.changed, 1.5)
        )
    if not np.isfinite(errors).all():
        return bool(np.isfinite(new_errors).all())
    # Fewer than four images cannot tell a difference from chance.
    comparable = errors.size >= 4 and np.isfinite(new_errors).all()
    lower = new_errors.mean() < errors.mean() and after.noise_to_signal <= before.noise_to_signal
    # Errors are squares: without the root a few images would decide alone.
    gains = np.sqrt(errors) - np.sqrt(new_errors)
    return bool(comparable and lower and _exceeds_chance(gains, 2.0, ddof=1))


def _exceeds_chance(differences: ErrorArray, standard_errors: float, ddof: int = 0) -> bool:
    """Whether the mean of paired differences is above so many of its standard errors."""
    deviation = differences.std(ddof=ddof)
    return bool(differences.mean() > standard_errors * deviation / np.sqrt(differences.size))
