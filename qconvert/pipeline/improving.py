"""Weights learned on calibration images, kept only if the answers of the whole model get nearer.

Every layer is stored as soon as it is learned, so that a run which was killed goes on there.
"""

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydantic

from qconvert import __version__
from qconvert.backends.ort import VERSION, open_cpu
from qconvert.feeds import Feeds, answer, batch_size
from qconvert.measure.nearness import Numbers, changed, distances, noise
from qconvert.pipeline.efforts import EFFORTS, fitting
from qconvert.pipeline.measuring import BATCH
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.seen import Seen
from qconvert.pipeline.study import MOST_BYTES as ANSWER_BYTES
from qconvert.quantize import learned as weights
from qconvert.quantize import plan as plans
from qconvert.quantize.learned import Learned, Weights
from qconvert.quantize.learning import Lesson, Taught, learn, learnable
from qconvert.quantize.plan import Plan
from qconvert.quantize.rewrite import apply
from qconvert.quantize.stretches import untyped
from qconvert.report.numerals import count
from qconvert.store import Store

WEIGHTS, TOLD = "learned.npz", "told.json"
FEWEST_PARTS = 2
# Standard errors by which the distance may grow, and the share of changed answers. A smaller error
# is no comfort where more answers are wrong, and few images show that late.
FURTHER, MORE_CHANGED = 2.0, 1.5
NOT_AT_HAND = (
    "weights were rounded to the nearest: learning them needs the calibration images, `--images`"
)
TOO_FEW = (
    "weights were rounded to the nearest: {} are too few to learn from some and judge by others"
)
NO_TYPE = (
    "weights were rounded to the nearest: the type of `{}` is not known, so no layer runs alone"
)


@dataclass(frozen=True)
class Improved:
    """A plan, the weights that were learned with it, and what to say of them."""

    plan: Plan
    learned: Weights
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Nearness:
    """The power of the answers' error over that of the answers, and their mean distance.

    Both are infinite where an answer is not finite.
    """

    # Else infinity would be written as null, and that is no number to read again.
    __pydantic_config__ = pydantic.ConfigDict(ser_json_inf_nan="constants")

    error: float
    distance: float


@dataclass(frozen=True)
class Verdict:
    """What became of the layers, and how near the model's answers are to FP32 before and after."""

    layers: int
    learned: int
    corrected: int
    before: Nearness
    after: Nearness
    worse: bool
    judges: int
    images: int = 0

    @property
    def kept(self) -> bool:
        """Whether the error of the answers fell, and they are no further off beyond chance."""
        return self.after.error < self.before.error and not self.worse

    def text(self) -> str:
        """Say it in one sentence."""
        came = (
            f"error {100 * self.before.error:.3g}% -> {100 * self.after.error:.3g}%, distance "
            f"{self.before.distance:.3g} -> {self.after.distance:.3g} "
            f"on {self.judges} other images"
        )
        if not self.kept:
            return f"learned weights were dropped, they do not bring the answers nearer: {came}"
        corrected = f", bias corrected in {self.corrected} more" if self.corrected else ""
        return (
            f"weights learned in {self.learned} of {self.layers} layers{corrected} "
            f"({self.images} images); answers: {came}"
        )


VERDICT = pydantic.TypeAdapter(Verdict)


@dataclass(frozen=True)
class Improver:
    """What a plan is improved with."""

    ready: Prepared
    found: Seen
    store: Store
    tell: Tell


def improve(plan: Plan, effort: str, by: Improver) -> Improved:
    """Return the plan with weights that were learned, where that brings the answers nearer."""
    chosen, model = EFFORTS[effort], by.ready.model
    names = learnable(model, plan)
    if not chosen.images or not names:
        return Improved(plan, weights.NOTHING)
    if lost := untyped(model):
        return Improved(plan, weights.NOTHING, (NO_TYPE.format(lost),))
    if not by.found.at_hand:
        return Improved(plan, weights.NOTHING, (NOT_AT_HAND,))
    started = time.perf_counter()
    images = fitting(model, chosen.images)
    if not by.found.apart:
        # Of few images some must be left to judge by.
        images = min(images, by.found.count - BATCH)
    parts = by.found.lessons(images) if images > 0 else []
    judged = next(by.found.judges(images, chosen.judges), None) is not None
    if len(parts) < FEWEST_PARTS or not judged:
        return Improved(plan, weights.NOTHING, (TOO_FEW.format(count(by.found.count, "image")),))
    recipe = _recipe(plan, effort, by)

    def make(folder: Path) -> None:
        lesson = Lesson(parts, functools.partial(open_cpu, literal=True), chosen.rows)
        with by.store.bench("learn", recipe) as bench:
            taught = _taught(plan, lesson, by, bench)
            weights.save(_kept(taught), folder / WEIGHTS)
        judges = by.found.judges(images, chosen.judges)
        verdict = _judge(plan, taught, judges, by)
        verdict = replace(verdict, images=sum(map(batch_size, parts)))
        (folder / TOLD).write_bytes(VERDICT.dump_json(verdict))

    stored = by.store.get("learn", recipe, make)
    verdict = VERDICT.validate_json((stored.path / TOLD).read_bytes())
    took = time.perf_counter() - started
    by.tell(Progress("learn", verdict.text(), took, stored.stored))
    if not verdict.kept:
        return Improved(plan, weights.NOTHING, (verdict.text(),))
    learned = weights.load(stored.path / WEIGHTS)
    return Improved(weights.signed(plan, learned), learned, (verdict.text(),))


def _taught(plan: Plan, lesson: Lesson, by: Improver, bench: Path) -> list[Taught]:
    """Learn what is not on the bench yet, and leave each layer there as soon as it is learned."""
    names = learnable(by.ready.model, plan)
    there = (_read(bench, place, name) for place, name in enumerate(names))
    known = {each.name: each for each in there if each is not None}
    taught: list[Taught] = []
    for place, each in enumerate(learn(by.ready.model, plan, replace(lesson, known=known))):
        taught.append(each)
        if each.name not in known:
            _write(bench, place, each)
        by.tell(Progress("learn", "layers", done=place + 1, total=len(names)))
    return taught


def _write(bench: Path, place: int, taught: Taught) -> None:
    held = {} if taught.learned is None else {taught.name: taught.learned}
    draft = bench / f".{place}.npz"
    weights.save(held, draft)
    draft.rename(bench / f"{place}-{taught.moved}.npz")


def _read(bench: Path, place: int, name: str) -> Taught | None:
    """Return what an earlier try learned of a layer."""
    for file in bench.glob(f"{place}-*.npz"):
        return Taught(name, weights.load(file).get(name), int(file.stem.split("-")[1]))
    return None


def _kept(taught: Sequence[Taught]) -> dict[str, Learned]:
    return {each.name: each.learned for each in taught if each.learned is not None}


def _judge(plan: Plan, taught: Sequence[Taught], judges: Iterable[Feeds], by: Improver) -> Verdict:
    """Compare the answers of the model with and without what was learned, on other images."""
    model, learned = by.ready.model, _kept(taught)
    after_all = apply(model, weights.signed(plan, learned), learned)
    runs = [open_cpu(each) for each in (model, apply(model, plan), after_all)]
    counts, held, told = list[int](), 0, list[list[Feeds]]()
    for feeds in judges:
        counts.append(batch_size(feeds))
        told.append([run(feeds) for run in runs])
        held += sum(answer(told[-1][0], name).nbytes for name in told[-1][0])
        if held > ANSWER_BYTES:
            break
    wanted, *found = (list(each) for each in zip(*told, strict=True))
    far = [distances(wanted, answers, counts) for answers in found]
    before, after = (
        Nearness(noise(wanted, answers), float(each.mean()))
        for answers, each in zip(found, far, strict=True)
    )
    apart = [changed(wanted, answers, counts) for answers in found]
    return Verdict(
        layers=len(taught),
        learned=sum(each.moved > 0 for each in taught),
        corrected=sum(each.learned is not None and not each.moved for each in taught),
        before=before,
        after=after,
        worse=_grew(far[0], far[1], FURTHER) or _grew(apart[0], apart[1], MORE_CHANGED),
        judges=sum(counts),
    )


def _grew(before: Numbers, after: Numbers, errors: float) -> bool:
    """Whether the images' numbers grew by more than so many standard errors."""
    grown = after - before
    return bool(grown.mean() > errors * grown.std() / np.sqrt(grown.size))


def _recipe(plan: Plan, effort: str, by: Improver) -> dict[str, str]:
    """Return all that decides what is learned."""
    return {
        "name": f"weights, effort {effort}",
        "plan": plans.dumps(plan),
        "calibration": by.found.whole.origin.fingerprint,
        "effort": f"{effort} {EFFORTS[effort]}",
        "qconvert": __version__,
        "numpy": np.__version__,
        "onnxruntime": VERSION,
    }
