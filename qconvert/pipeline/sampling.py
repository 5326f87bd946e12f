"""The images of a search, with what FP32 answers and the labels that are known."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qconvert.backends.ort import open_cpu
from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import Feeds, batch_size, filled_up, first, fixed_batch
from qconvert.images.labels import check_classes
from qconvert.pipeline.graphs import Basis
from qconvert.pipeline.scoring import BATCH, Exam
from qconvert.search.answers import Wanted
from qconvert.search.explore import Sample
from qconvert.search.subject import held

NO_SCORES = "a budget is of answers, and no output of this model is a row of scores"

# Batches as the model takes them, with a label or None for each image that is no repetition.
Labelled = tuple[Feeds, Sequence[int | None]]
Batches = Callable[[], Iterator[Labelled]]


def for_search(base: Basis) -> Sample:
    """Return the calibration images that are held out for choices; they have no labels."""
    found = base.found
    if found is None or not found.at_hand:
        raise UsageError(
            "a search needs images to try blocks on", hint="give pictures: `--images PATH`"
        )

    def batches() -> Iterator[Labelled]:
        left = found.count
        for feeds in found.images():
            count = min(batch_size(feeds), left)
            left -= count
            yield feeds, [None] * count

    return _sample("search", base, batches)


def for_evaluation(base: Basis, exam: Exam) -> Sample:
    """Return all images for evaluation, in batches that the model takes.

    Where the model fixes the batch, images that do not make a whole one are left out; fewer than
    one are repeated.
    """
    size = fixed_batch(base.ready.source.inputs)

    def batches() -> Iterator[Labelled]:
        for number, batch in enumerate(exam.images.batches(size or BATCH)):
            if not size or not number or len(batch.items) == size:
                feeds = filled_up(batch.feeds, size) if size else batch.feeds
                # Pictures that cannot be read are no items, and their labels nobody's.
                yield feeds, [item.label for item in batch.items]

    sample = _sample(f"evaluation {exam.digest()[:12]}", base, batches)
    scores = np.asarray(sample.wanted.answers[0][sample.wanted.scores])
    check_classes(exam.images, scores.shape[1])
    return sample


def _sample(name: str, base: Basis, batches: Batches) -> Sample:
    kept, run = held(batches), open_cpu(base.ready.model)
    answers, labels = list[Feeds](), list[int | None]()
    for feeds, known in kept():
        answers.append(first(run(feeds), len(known), batch_size(feeds)))
        labels += known
    if not answers:
        raise QConvertError("there is no image to search on", hint="give more: `--images PATH`")
    wanted = Wanted(answers, labels)
    if not wanted.scores:
        raise QConvertError(
            NO_SCORES, hint="`qconvert compare` names layers that err, `--exclude` leaves them out"
        )
    return Sample(name, lambda: (feeds for feeds, _ in kept()), wanted)
