"""One block lifted at a time: what the whole network then answers.

All that a block does not change is run once: the network before it is run in INT8 up to where the
first change is, and what is there is kept for the trials after it. That halves the work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qconvert.feeds import Feeds
from qconvert.quantize.plan import Plan
from qconvert.search.blocks import Block
from qconvert.search.prefix import can_be_cut, live
from qconvert.search.subject import HELD_BYTES, Images, Subject


@dataclass(frozen=True)
class Prefix:
    """All images as they are before node number `at`, with everything before it in INT8."""

    at: int
    images: Images


def one_by_one(
    subject: Subject, blocks: Sequence[Block], images: Images, most: int = HELD_BYTES
) -> Iterator[list[Feeds]]:
    """Yield for each block, in the order of the graph, the answers with it alone lifted.

    What is kept between trials takes at most so many bytes; where it would not fit, more is run.
    """
    prefix = Prefix(0, images)
    cut = can_be_cut(subject.model)
    for block in blocks:
        plan = subject.lifted([block])
        first = first_change(subject, plan)
        if cut and first > prefix.at:
            prefix = _advanced(subject, prefix, first, most)
        start = prefix if prefix.at <= first else Prefix(0, images)
        yield _answers(subject, plan, start)


def first_change(subject: Subject, plan: Plan) -> int:
    """Return the number of the first node for which a plan says something else."""
    before = subject.plan.layers
    for number, node in enumerate(subject.model.graph):
        name = node.name or ""
        if before.get(name) != plan.layers.get(name):
            return number
    return len(subject.model.graph)


def _answers(subject: Subject, plan: Plan, prefix: Prefix) -> list[Feeds]:
    run = subject.opened(plan, prefix.at)
    names = [str(value.name) for value in subject.model.graph.outputs]
    found = []
    for feeds in prefix.images():
        made = {**feeds, **run(feeds)}
        found.append({name: made[name] for name in names})
    return found


def _advanced(subject: Subject, prefix: Prefix, to: int, most: int) -> Prefix:
    """Run on to another node; where its tensors are too large, stay."""
    run = subject.opened(subject.plan, prefix.at, to)
    names = [str(value.name) for value in live(subject.model.graph, to)]
    kept: list[Feeds] = []
    size = 0
    for feeds in prefix.images():
        made = {**feeds, **run(feeds)}
        kept.append({name: made[name] for name in names})
        size += sum(array.nbytes for array in kept[-1].values())
        if size > most:
            return prefix
    return Prefix(to, lambda: iter(kept))
