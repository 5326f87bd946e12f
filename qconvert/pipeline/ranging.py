"""The range method of every tensor by what its rounding does to the answers, on a few images."""

import math
import time
from dataclasses import replace

from qconvert.backends.ort import open_cpu
from qconvert.graph.describe import describe
from qconvert.graph.observed import observe
from qconvert.pipeline.efforts import fitting
from qconvert.pipeline.measuring import BATCH
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.study import LESSONS, Study
from qconvert.quantize import by_answers, ranges
from qconvert.quantize.by_answers import Rounding, Trial
from qconvert.quantize.planning import Wishes
from qconvert.quantize.ranges import USUAL, Way
from qconvert.quantize.stretches import untyped

# What single tensors can be given. Tighter percentiles fit the few images, and no others.
METHODS = (USUAL, "minmax", "percentile:99.999", "percentile:99.99", "percentile:99.9")
STEP = "ranges"


def ranged(study: Study, work: float) -> Wishes:
    """Return the wishes with a method of its own for each tensor that another one suits better.

    At most `work` multiplications are done; where they are not enough for a batch of images, the
    wishes stay as they are.
    """
    model, grid = study.ready.model, study.scheme.activations
    observed = observe(model)
    summaries = study.found.choosing.summaries
    found = {
        method: ranges.choose(model.graph, observed, summaries, Way(method, grid))
        for method in METHODS
    }
    rounded = study.draft(study.wishes).tensors.keys() - observed.shares.keys()
    own = {
        method: {name: each for name, each in some.items() if name in rounded}
        for method, some in found.items()
    }
    total = len(by_answers.tensors(model, own))
    images = _affordable(study, total, work)
    if not total or not images or untyped(model):
        return study.wishes
    started = time.perf_counter()
    # All are taken from those that never judge.
    trial = Trial(study.found.lessons(LESSONS)[: images // BATCH], open_cpu)
    rounding = Rounding(grid, study.wishes.rest)
    apart: dict[str, str] = {}
    for done, (name, method) in enumerate(by_answers.methods(model, own, rounding, trial)):
        if method != study.wishes.method:
            apart[name] = method
        study.tell(Progress(STEP, "tensors", done=done + 1, total=total))
    text = f"{len(apart)} of {total} tensors rounded by another method than {USUAL}"
    study.tell(Progress(STEP, text, time.perf_counter() - started))
    return replace(study.wishes, apart=apart)


def _affordable(study: Study, tensors: int, work: float) -> int:
    """Return for how many images work and memory are enough, in whole batches."""
    once = sum(node.macs or 0 for node in describe(study.ready.model).nodes)
    # On average half of the model runs for each of them.
    each = max(1, once * tensors * len(METHODS) / 2)
    most = min(fitting(study.ready.model, LESSONS), work / each)
    return math.floor(most / BATCH) * BATCH
