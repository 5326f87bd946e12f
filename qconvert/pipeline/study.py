"""A model with what was seen of it, and what is wished for: what choices are made from."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qconvert.backends.ort import open_cpu
from qconvert.feeds import Feeds, answer, batch_size
from qconvert.measure.nearness import Numbers, distances, noise
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.seen import Seen
from qconvert.quantize.plan import Plan
from qconvert.quantize.planning import Wishes, make_plan
from qconvert.quantize.rewrite import apply
from qconvert.quantize.scheme import Scheme

# By so much another way must be nearer than the usual one.
STANDARD_ERRORS = 2.0
# Images that choices may learn from, which are not among those that judge.
LESSONS = 32
# Answers that are held of the float model.
MOST_BYTES = 256_000_000
FEWEST = 4  # below, chance cannot be told from a difference


@dataclass(frozen=True, eq=False)
class Far:
    """How far answers are from FP32: on each image, and their error as a share of all answers."""

    images: Numbers
    error: float


@dataclass(frozen=True)
class Study:
    """A model, what was seen of it, and how it is to be quantized.

    Choices are made by the images that are held out, and others up to so many `judges`.
    """

    ready: Prepared
    found: Seen
    scheme: Scheme
    wishes: Wishes
    judges: int
    tell: Tell

    def plan(self) -> Plan:
        """Return the plan from all that was seen."""
        summaries = self.found.whole.summaries
        return make_plan(self.ready.model, self.scheme, summaries, self.wishes)

    def draft(self, wishes: Wishes) -> Plan:
        """Return a plan that knows nothing of the images that are held out."""
        return make_plan(self.ready.model, self.scheme, self.found.choosing.summaries, wishes)

    def wanted(self) -> list[Feeds]:
        """Return what the float model answers to the images that judge."""
        run = open_cpu(self.ready.model)
        wanted: list[Feeds] = []
        held = 0
        for feeds in self._judges():
            wanted.append(run(feeds))
            held += sum(answer(wanted[-1], name).nbytes for name in wanted[-1])
            if held > MOST_BYTES:
                break
        return wanted

    def far(self, wishes: Wishes, wanted: list[Feeds]) -> Far:
        """Return how far the answers of the nearest integers are from that."""
        run = open_cpu(apply(self.ready.model, self.draft(wishes)))
        answers, counts = list[Feeds](), list[int]()
        for feeds, _ in zip(self._judges(), wanted, strict=False):
            answers.append(run(feeds))
            counts.append(batch_size(feeds))
        return Far(distances(wanted, answers, counts), noise(wanted, answers))

    def on(self, far: Far) -> str:
        """Say on which images distances were found."""
        count = far.images.size
        if not self.found.held_out:
            return f"on {count} images that were calibrated on"
        if count <= self.found.count:
            return f"on {count} other images"
        return f"on {count} images, {self.found.count} of them not calibrated on"

    def _judges(self) -> Iterator[Feeds]:
        found = self.found
        return found.judges(LESSONS, self.judges) if found.apart else found.images()


def nearer(usual: Far, other: Far) -> bool:
    """Whether images are nearer with another way, by more than chance would make them.

    What is nearer on most images, and so far off on a few that the error of all grows, is not.
    """
    before, after = usual.images, other.images
    if not np.isfinite(before).all():
        return bool(np.isfinite(after).all())
    if before.size < FEWEST or not np.isfinite(after).all() or after.mean() >= before.mean():
        return False
    if other.error > usual.error:
        return False
    # Distances grow with the square of an error; as they are, a few images would decide alone.
    gained = np.sqrt(before) - np.sqrt(after)
    return bool(gained.mean() > STANDARD_ERRORS * gained.std(ddof=1) / np.sqrt(gained.size))
