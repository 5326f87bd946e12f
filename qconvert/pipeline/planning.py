"""From what was seen of a model to a plan, as good as the effort allows."""

from dataclasses import dataclass, replace

from qconvert import onnx_io
from qconvert.pipeline.choosing import Tried, try_methods
from qconvert.pipeline.efforts import EFFORTS
from qconvert.pipeline.evening import evened
from qconvert.pipeline.ranging import ranged
from qconvert.pipeline.seen import Seen
from qconvert.pipeline.study import Study
from qconvert.quantize.plan import Plan
from qconvert.quantize.ranges import ANSWERS, AUTO, USUAL
from qconvert.store import Store


@dataclass(frozen=True)
class Drafted:
    """A plan, what was seen of the model that it rounds, and what was tried for it."""

    plan: Plan
    found: Seen
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()


def draft(study: Study, effort: str, store: Store) -> Drafted:
    """Return a plan by the method wished for; with some effort channels are made even first."""
    chosen, method = EFFORTS[effort], study.wishes.method
    plain = replace(study, wishes=replace(study.wishes, method=_alone(method)))
    if not study.found.at_hand:
        return Drafted(plain.plan(), plain.found)
    even = evened(plain, store) if chosen.evens else None
    study = even.study if even is not None else plain
    tried: tuple[Tried, ...] = ()
    if method == AUTO:
        wishes, tried = try_methods(study, chosen.work)
        study = replace(study, wishes=wishes)
    elif method == ANSWERS:
        study = replace(study, wishes=ranged(study, EFFORTS["thorough"].work))
    plan = study.plan()
    if even is None or not even.factors:
        return Drafted(plan, study.found, tried)
    # The plan is for the model as it was: the factors are a part of it.
    name = onnx_io.fingerprint(plain.ready.model)
    plan = replace(plan, model=name, equalized=dict(even.factors))
    return Drafted(plan, study.found, tried, even.notes)


def _alone(method: str) -> str:
    """Return the method by which all ranges are chosen until each has its own."""
    return USUAL if method in (AUTO, ANSWERS) else method
