"""One model rewritten to a precision: planned, applied, made half, and looked at."""

import time
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.measure.nearness import sqnr_db
from qconvert.pipeline import rewritten
from qconvert.pipeline.choosing import Tried
from qconvert.pipeline.efforts import EFFORTS
from qconvert.pipeline.halves import halved, largest
from qconvert.pipeline.improving import Improver, improve
from qconvert.pipeline.planning import draft
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.seen import Seen
from qconvert.pipeline.study import Study
from qconvert.quantize.learned import Weights
from qconvert.quantize.plan import Plan
from qconvert.quantize.planning import Wishes
from qconvert.quantize.rewrite import apply
from qconvert.quantize.scheme import Scheme
from qconvert.store import Store

NOT_RUN = "not run here: ONNX Runtime has no bf16 kernels for the CPU"
LITERALLY = (
    "to check it on ONNX Runtime's CPU provider set `session.disable_quant_qdq` = 1: it would make "
    "integers of the float biases, and answer wrongly"
)
STRANGE = (
    "the answers have little to do with those of the float model: SQNR {:.0f} dB on {} images; "
    "try `--method auto`, or `--exclude` layers"
)
UNSEEN = "without calibration nothing is known of overflow: add `--images`"

# Below, the error has half the power of the answers, and more.
LEAST_DB = 3.0


@dataclass(frozen=True)
class How:
    """What a model is rewritten to: to INT8 by a `plan` or by a `scheme`, the rest as wished.

    `learned` are the weights that were learned with the plan given; weights of a new plan are
    learned with an `effort`.
    """

    name: str
    wishes: Wishes
    scheme: Scheme | None = None
    plan: Plan | None = None
    learned: Weights = field(default_factory=dict)
    effort: str = "none"
    keep_io: bool = True


@dataclass(frozen=True)
class Rewritten:
    """The model that was made, and how.

    `learned` are the weights that belong to the plan. `islands` are the nodes that half precision
    left in float32, each with its reason; `tried` has every range method where one was chosen.
    """

    model: ir.Model
    plan: Plan | None = None
    learned: Weights = field(default_factory=dict)
    islands: dict[str, str] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()


def rewrite(ready: Prepared, found: Seen | None, how: How, store: Store, tell: Tell) -> Rewritten:
    """Return the model in the precisions that were asked for; it runs, and answers with numbers."""
    plan, learned, notes = how.plan, how.learned, list[str]()
    tried: tuple[Tried, ...] = ()
    if plan is None and how.scheme is not None and found is not None:
        judges = EFFORTS[how.effort].judges
        study = Study(ready, found, how.scheme, how.wishes, judges, tell)
        drafted = draft(study, how.effort, store)
        found, tried = drafted.found, drafted.tried
        better = improve(drafted.plan, how.effort, Improver(ready, found, store, tell))
        plan, learned, notes = better.plan, better.learned, [*drafted.notes, *better.notes]
    started = time.perf_counter()
    rest = plan.rest if plan is not None else how.wishes.rest
    model = ready.model if plan is None else apply(ready.model, plan, learned)
    islands: dict[str, str] = {}
    if rest != "fp32":
        known = largest(ready.model, found.whole if found is not None else None)
        done = halved(model, rest, known, keep_io=how.keep_io)
        model, islands = done.model, done.islands
        notes += [UNSEEN] if rest == "fp16" and found is None else []
    model = rewritten.signed(model, plan, islands)
    if rest == "bf16":
        notes.append(NOT_RUN)
    else:
        rewritten.require_sound(model, ready)
    if plan is not None and not plan.integer_bias:
        notes.append(LITERALLY)
    notes += _strange(ready, model, found) if rest != "bf16" else []
    result = Rewritten(model, plan, learned, islands, tried, tuple(notes))
    tell(Progress("quantize", f"{how.name}: {_told(result, rest)}", time.perf_counter() - started))
    return result


def _strange(ready: Prepared, model: ir.Model, found: Seen | None) -> list[str]:
    """Say so where a model no longer answers like the one it was made from."""
    if found is None or not found.at_hand:
        return []
    feeds = next(iter(found.images()))
    wanted, got = open_cpu(ready.model)(feeds), open_cpu(model)(feeds)
    db = sqnr_db(wanted, got)
    count = len(next(iter(feeds.values())))
    return [STRANGE.format(db, count)] if db < LEAST_DB else []


def _told(done: Rewritten, rest: str) -> str:
    parts = [] if done.plan is not None or rest != "fp32" else ["the float model"]
    if done.plan is not None:
        left = len(done.plan.layers) - done.plan.quantized
        parts.append(f"{done.plan.quantized} of {len(done.plan.layers)} nodes in int8")
        parts += [f"{left} left in float"] if left else []
    if rest != "fp32":
        whole = f"{len(done.model.graph)} nodes"
        parts.append(f"the rest in {rest}" if done.plan is not None else f"{whole} in {rest}")
        parts += [f"{len(done.islands)} of them stay in fp32"] if done.islands else []
    return ", ".join(parts)
