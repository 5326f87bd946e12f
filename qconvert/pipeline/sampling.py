"""The images of a search, with what FP32 answers and the labels that are known."""

from collections.abc import Iterator

import numpy as np

from qconvert.backends.ort import open_cpu
from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import Feeds, filled_up, fixed_batch
from qconvert.images.labels import check_classes
from qconvert.pipeline.graphs import Basis
from qconvert.pipeline.scoring import BATCH, Exam
from qconvert.search.answers import Wanted
from qconvert.search.explore import Sample
from qconvert.search.subject import Images, held

NO_SCORES = "a budget is of answers, and no output of this model is a row of scores"


def for_search(base: Basis) -> Sample:
    """Return the calibration images that are held out for choices; they have no labels."""
    found = base.found
    if found is None or not found.at_hand:
        raise UsageError(
            "a search needs images to try blocks on", hint="give pictures: `--images PATH`"
        )
    return _sample("search", base, held(found.images), ())


def for_evaluation(base: Basis, exam: Exam) -> Sample:
    """Return all images for evaluation, in batches that the model takes."""
    size = fixed_batch(base.ready.source.inputs)
    labels = list(exam.images.labels)
    count = len(labels) if not size else max(size, len(labels) // size * size)

    def images() -> Iterator[Feeds]:
        for batch in exam.images.batches(size or BATCH):
            if not size or len(batch.items) == size:
                yield batch.feeds
            elif len(labels) < size:
                yield filled_up(batch.feeds, size)

    kept = [labels[at % len(labels)] for at in range(count)]
    sample = _sample(f"evaluation {exam.digest()[:12]}", base, held(images), kept)
    scores = np.asarray(sample.wanted.answers[0][sample.wanted.scores])
    check_classes(exam.images, scores.shape[1])
    return sample


def _sample(name: str, base: Basis, images: Images, labels: tuple[()] | list[int | None]) -> Sample:
    run = open_cpu(base.ready.model)
    answers = [run(feeds) for feeds in images()]
    if not answers:
        raise QConvertError("there is no image to search on", hint="give more: `--images PATH`")
    scores = Wanted(answers, ()).scores
    if not scores:
        raise QConvertError(
            NO_SCORES, hint="`qconvert compare` names layers that err, `--exclude` leaves them out"
        )
    count = sum(len(np.asarray(feeds[scores])) for feeds in answers)
    return Sample(name, images, Wanted(answers, labels or [None] * count))
