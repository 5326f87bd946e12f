"""One process's share of a calibration: the tapped model over some of the images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert import onnx_io
from qconvert.backends.ort import open_cpu
from qconvert.calibrate import ranges_file
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.collect import Batch, Collector, collect
from qconvert.feeds import Feeds, Run, fixed_batch
from qconvert.graph.taps import Tapped, tap
from qconvert.images.batch import Images
from qconvert.images.pictures import NoImage

# Memory is mostly the activations of one batch; a larger one is hardly faster.
BATCH = 8


@dataclass(frozen=True)
class Share:
    """Parts of the images to run, what is known already, and the file that keeps it."""

    images: Images
    parts: Sequence[range]
    start: Calibration
    keep: Path
    threads: int = 0


def measure(model: ir.Model, share: Share, seen: Callable[[int], None]) -> Calibration:
    """Return `share.start` and all that its images add; `seen` hears how many are done."""
    tapped = tap(model, exact=share.start.origin.exact)
    fixed = fixed_batch(onnx_io.inputs(model))
    size = 1 if tapped.observed.one_at_a_time else fixed or BATCH
    run = open_cpu(tapped.model, share.threads)
    if fixed:
        run = filled(run, size, tapped)
    save = ranges_file.saving(share.keep)

    def after(collector: Collector) -> None:
        seen(collector.done)
        save(collector)

    found = share.start
    for part in share.parts:
        batches = _numbered(share.images.between(part.start, part.stop), size)
        try:
            found = collect(run, batches, tapped, found, after)
        except NoImage:
            # Files that could not be read the last time either; that is no news.
            if not found.done.size:
                raise
    return found


def filled(run: Run, size: int, tapped: Tapped) -> Run:
    """Return `run` for a model of fixed batch: a short batch is filled up, the filling left out."""
    whole = {each.size for each in tapped.taps}

    def fill(feeds: Feeds) -> Feeds:
        count = len(next(iter(feeds.values())))
        full = {name: np.resize(array, (size, *array.shape[1:])) for name, array in feeds.items()}
        answers = run(full)
        return {name: each if name in whole else each[:count] for name, each in answers.items()}

    return fill


def _numbered(images: Images, size: int) -> Iterator[Batch]:
    for batch in images.batches(size):
        yield [item.position for item in batch.items], batch.feeds
