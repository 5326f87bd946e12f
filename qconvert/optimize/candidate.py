"""A model with what was seen of it, and what is wished for: what choices are made from."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qconvert.backends.ort import open_cpu
from qconvert.core.progress import ProgressCallback
from qconvert.core.tensors import Tensors, batch_size, output_array
from qconvert.measure.output_error import OutputError, noise_to_signal, per_image_errors
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.quantize.plan import Plan
from qconvert.quantize.scheme import Scheme
from qconvert.sources import LoadedModel

# By so much another way must be nearer than the usual one.
STANDARD_ERRORS = 2.0
# Images that choices may learn from, which are not among those that judge.
MAX_TRAINING_IMAGES = 32
# Answers that are held of the float model.
MAX_OUTPUT_BYTES = 256_000_000
MIN_IMAGES = 4  # below, chance cannot be told from a difference


@dataclass(frozen=True)
class Candidate:
    """A model, what was seen of it, and how it is to be quantized.

    Choices are made by the images that are held out, and others up to so many `judges`.
    """

    loaded: LoadedModel
    calibration: CalibrationSet
    scheme: Scheme
    options: QuantizeOptions
    max_holdout_images: int
    progress: ProgressCallback

    def final_plan(self) -> Plan:
        """Return the plan from all that was seen."""
        summaries = self.calibration.full.summaries
        return make_plan(self.loaded.model, self.scheme, summaries, self.options)

    def trial_plan(self, wishes: QuantizeOptions) -> Plan:
        """Return a plan that knows nothing of the images that are held out."""
        return make_plan(
            self.loaded.model, self.scheme, self.calibration.training.summaries, wishes
        )

    def reference_outputs(self) -> list[Tensors]:
        """Return what the float model answers to the images that judge."""
        run = open_cpu(self.loaded.model)
        wanted: list[Tensors] = []
        held = 0
        for feeds in self._holdout_batches():
            wanted.append(run(feeds))
            held += sum(output_array(wanted[-1], name).nbytes for name in wanted[-1])
            if held > MAX_OUTPUT_BYTES:
                break
        return wanted

    def output_error(self, wishes: QuantizeOptions, wanted: list[Tensors]) -> OutputError:
        """Return how far the answers of the nearest integers are from that."""
        run = open_cpu(apply_plan(self.loaded.model, self.trial_plan(wishes)))
        answers, counts = list[Tensors](), list[int]()
        for feeds, _ in zip(self._holdout_batches(), wanted, strict=False):
            answers.append(run(feeds))
            counts.append(batch_size(feeds))
        return OutputError(
            per_image_errors(wanted, answers, counts), noise_to_signal(wanted, answers)
        )

    def describe_images(self, far: OutputError) -> str:
        """Say on which images distances were found."""
        count = far.per_image.size
        if not self.calibration.excludes_holdout:
            return f"on {count} images that were calibrated on"
        if count <= self.calibration.validation_count:
            return f"on {count} other images"
        return f"on {count} images, {self.calibration.validation_count} of them not calibrated on"

    def _holdout_batches(self) -> Iterator[Tensors]:
        found = self.calibration
        return (
            found.holdout_batches(MAX_TRAINING_IMAGES, self.max_holdout_images)
            if found.has_holdout
            else found.validation_batches()
        )


def is_better(usual: OutputError, other: OutputError) -> bool:
    """Whether images are nearer with another way, by more than chance would make them.

    What is nearer on most images, and so far off on a few that the error of all grows, is not.
    """
    before, after = usual.per_image, other.per_image
    if not np.isfinite(before).all():
        return bool(np.isfinite(after).all())
    if before.size < MIN_IMAGES or not np.isfinite(after).all() or after.mean() >= before.mean():
        return False
    if other.noise_to_signal > usual.noise_to_signal:
        return False
    # Distances grow with the square of an error; as they are, a few images would decide alone.
    gained = np.sqrt(before) - np.sqrt(after)
    return bool(gained.mean() > STANDARD_ERRORS * gained.std(ddof=1) / np.sqrt(gained.size))
