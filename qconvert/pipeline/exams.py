"""The images that answers are compared on."""

from qconvert.images import ImageChoice, open_images
from qconvert.images.reading import Reading
from qconvert.pipeline import pictures
from qconvert.pipeline.graphs import Basis
from qconvert.pipeline.scoring import Exam
from qconvert.pipeline.workshop import Workshop


def exam_of(base: Basis, shop: Workshop, workers: int | None, *, resumed: bool) -> Exam | None:
    """Open the images, if there are any.

    A run that goes on elsewhere does without those of the other machine.
    """
    config, source = shop.config, base.ready.source
    chosen = config.evaluate
    if chosen.images is None or (resumed and not chosen.images.exists()):
        return None
    choice = ImageChoice(chosen.images, chosen.count, chosen.labels, config.calibration.seed)
    known = pictures.preprocessing_or_usual(source, config)
    reading = Reading(workers, config.calibration.max_broken)
    images = open_images(choice, source.inputs, known, reading)
    return Exam(shop.run.model, images, pictures.settled_or_none(source, config))
