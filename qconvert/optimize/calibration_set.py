"""."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qconvert.calibrate.calibration import Calibration
from qconvert.core.tensors import Tensors, batch_size
from qconvert.sources import LoadedModel

# Memory is mostly the activations of the batches at work; larger ones are hardly faster.
CALIBRATION_BATCH = 4


@dataclass(frozen=True)
class CalibrationSet:
    """A calibration, and `count` images to choose between what could be made of it.

    Choices are made with `choosing`, which did not see those images where they are `held_out`.
    They are `at_hand` unless all that is known is their names. `lessons` returns so many of the
    others, spread over all of them, in batches that the model takes, and `spare` yields what
    `lessons` of so many leaves. Of few images none are `apart` from those. `again` shows all images
    to a model that answers the same.
    """

    full: Calibration
    training: Calibration
    validation_batches: Callable[[], Iterator[Tensors]]
    validation_count: int
    excludes_holdout: bool
    images_available: bool = True
    has_holdout: bool = True
    training_batches: Callable[[int], list[Tensors]] = field(default=lambda count: [])
    remaining_batches: Callable[[int], Iterator[Tensors]] = field(default=lambda count: iter(()))
    recalibrate: Callable[[LoadedModel], "CalibrationSet"] | None = None

    def holdout_batches(self, lessons: int, most: int) -> Iterator[Tensors]:
        """Yield images that `lessons` of so many leave: those apart, and others up to `most`.

        Some there always are, unless the lessons took all.
        """
        count = 0
        for feeds in self.validation_batches() if self.has_holdout else ():
            count += batch_size(feeds)
            yield feeds
        for feeds in self.remaining_batches(lessons):
            if count and count + batch_size(feeds) > most:
                return
            count += batch_size(feeds)
            yield feeds
