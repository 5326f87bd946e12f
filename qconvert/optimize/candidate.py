"""Candidates for quantization, and the one test that decides whether a change to them is kept.

Range methods, equalization and learned weights are all accepted or dropped by the outputs of the
whole model: it runs on images that were held out, and is compared with the FP32 model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.progress import ProgressCallback
from qconvert.core.tensors import Tensors, batch_size, output_array
from qconvert.measure import output_error
from qconvert.measure.output_error import ErrorArray, OutputError
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.scheme import Scheme
from qconvert.sources import LoadedModel

# Images that per-tensor methods are chosen on; the test of acceptance never sees them.
MAX_TRAINING_IMAGES = 32
# FP32 outputs to hold in memory; images beyond are left out of the comparison.
MAX_OUTPUT_BYTES = 256_000_000
# Fewer images cannot tell a difference from chance.
MIN_IMAGES = 4
# By how many standard errors errors must fall, or may grow, and changed predictions may grow. More
# wrong predictions outweigh a smaller error, and few images show them late.
STANDARD_ERRORS, CHANGED_STANDARD_ERRORS = 2.0, 1.5


@dataclass(frozen=True)
class Candidate:
    """A model, its calibration, and how to quantize it.

    It is evaluated on the images held out, and on others up to `max_holdout_images` in all.
    """

    loaded: LoadedModel
    calibration: CalibrationSet
    scheme: Scheme
    options: QuantizeOptions
    max_holdout_images: int
    progress: ProgressCallback

    def final_plan(self) -> Plan:
        """Return the plan from the ranges of all images."""
        summaries = self.calibration.full.summaries
        return make_plan(self.loaded.model, self.scheme, summaries, self.options)

    def trial_plan(self, options: QuantizeOptions) -> Plan:
        """Return a plan from the ranges of all images but those held out."""
        summaries = self.calibration.training.summaries
        return make_plan(self.loaded.model, self.scheme, summaries, options)

    def reference_outputs(self) -> list[Tensors]:
        """Return the FP32 outputs on the holdout images."""
        return run_reference(self.loaded.model, self._holdout_batches())

    def output_error(self, options: QuantizeOptions, reference: Sequence[Tensors]) -> OutputError:
        """Return the output error of the model quantized with these options."""
        model = apply_plan(self.loaded.model, self.trial_plan(options))
        return compare_outputs(model, self._holdout_batches(), reference)

    def describe_images(self, error: OutputError) -> str:
        """Say on which images an error was measured."""
        count = error.per_image.size
        if not self.calibration.excludes_holdout:
            return f"on {count} calibration images"
        if count <= self.calibration.validation_count:
            return f"on {count} held-out images"
        return f"on {count} images, {self.calibration.validation_count} of them held out"

    def _holdout_batches(self) -> Iterator[Tensors]:
        if self.calibration.has_holdout:
            return self.calibration.holdout_batches(MAX_TRAINING_IMAGES, self.max_holdout_images)
        return self.calibration.validation_batches()


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


def compare_outputs(
    model: ir.Model, batches: Iterable[Tensors], reference: Sequence[Tensors]
) -> OutputError:
    """Return the output error of a model on the batches of the reference."""
    run, outputs, counts = open_cpu(model), list[Tensors](), list[int]()
    for batch, _ in zip(batches, reference, strict=False):
        outputs.append(run(batch))
        counts.append(batch_size(batch))
    return OutputError(
        output_error.per_image_errors(reference, outputs, counts),
        output_error.noise_to_signal(reference, outputs),
        output_error.prediction_changes(reference, outputs, counts),
    )


def is_better(before: OutputError, after: OutputError, *, significantly: bool = True) -> bool:
    """Whether a change lowers the output error: the test that accepts or drops it.

    Both errors are of the same images, so they are compared in pairs. By default the burden of
    proof is on the change: the mean gain of sqrt(error) must exceed two standard errors, and the
    noise-to-signal ratio must not rise. Without `significantly`, for weights that were trained to
    lower the error, the ratio must fall, and neither the errors nor the changed predictions of the
    images may grow by more than chance.
    """
    if not significantly:
        return after.noise_to_signal < before.noise_to_signal and not (
            _grows(before.per_image, after.per_image, STANDARD_ERRORS)
            or _grows(before.changed, after.changed, CHANGED_STANDARD_ERRORS)
        )
    errors, new_errors = before.per_image, after.per_image
    if not np.isfinite(errors).all():
        return bool(np.isfinite(new_errors).all())
    if errors.size < MIN_IMAGES or not np.isfinite(new_errors).all():
        return False
    if new_errors.mean() >= errors.mean() or after.noise_to_signal > before.noise_to_signal:
        return False
    # Errors are squares: without the root a few images would decide alone.
    gains = np.sqrt(errors) - np.sqrt(new_errors)
    return bool(gains.mean() > STANDARD_ERRORS * gains.std(ddof=1) / np.sqrt(gains.size))


def _grows(before: ErrorArray, after: ErrorArray, standard_errors: float) -> bool:
    """Whether the numbers of the images grow by more than so many standard errors."""
    growth = after - before
    return bool(growth.mean() > standard_errors * growth.std() / np.sqrt(growth.size))
