"""One process's share of a calibration: the tapped model over some of the images."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert import onnx_io
from qconvert.backends.ort import open_cpu
from qconvert.calibrate import ranges_file
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.collect import Batch, Collector, answering, collect
from qconvert.feeds import Feeds, Run, filled_up, fixed_batch
from qconvert.graph.taps import Tapped
from qconvert.images.ahead import ahead
from qconvert.images.batch import Images
from qconvert.images.pictures import NoImage

# Memory is mostly the activations of the batches at work; larger ones are hardly faster.
BATCH = 4
# One core a batch: nothing waits for the slowest part of an operator. More would take memory.
MOST_AT_ONCE = 4


@dataclass(frozen=True)
class Share:
    """Parts of the images to run, what is known already, and the file that keeps it."""

    images: Images
    parts: Sequence[range]
    start: Calibration
    keep: Path
    threads: int = 1


def measure(tapped: Tapped, share: Share, seen: Callable[[int], None]) -> Calibration:
    """Return `share.start` and all that its images add; `seen` hears how many are done."""
    fixed = fixed_batch(onnx_io.inputs(tapped.model))
    size = 1 if tapped.observed.one_at_a_time else fixed or BATCH
    at_once = min(share.threads, MOST_AT_ONCE)
    run = open_cpu(tapped.model, share.threads // at_once)
    if fixed:
        run = filled(run, size, tapped)
    save = ranges_file.saving(share.keep)

    def after(collector: Collector) -> None:
        seen(collector.done)
        save(collector)

    unread: list[NoImage] = []
    batches = _numbered(share, size, unread)
    answers = ahead(answering(run, tapped), batches, at_once, limit=at_once + 1)
    with contextlib.closing(answers):
        found = collect(answers, tapped, share.start, after)
    if unread and not found.done.size:
        raise unread[-1]
    return found


def filled(run: Run, size: int, tapped: Tapped) -> Run:
    """Return `run` for a model of fixed batch: a short batch is filled up, the filling left out."""
    whole = {each.size for each in tapped.taps}

    def fill(feeds: Feeds) -> Feeds:
        count = len(next(iter(feeds.values())))
        answers = run(filled_up(feeds, size))
        return {name: each if name in whole else each[:count] for name, each in answers.items()}

    return fill


def _numbered(share: Share, size: int, unread: list[NoImage]) -> Iterator[Batch]:
    """Yield the batches of all parts; a part without a readable picture is kept in `unread`.

    Those may be files that could not be read the last time either; that is no news.
    """
    for part in share.parts:
        try:
            for batch in share.images.between(part.start, part.stop).batches(size):
                yield [item.position for item in batch.items], batch.feeds
        except NoImage as error:
            unread.append(error)
