"""From a model and what calibration saw of it to one ONNX file that carries its precision."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qconvert import backends, onnx_io
from qconvert.config import Config
from qconvert.graph.observed import observe
from qconvert.pipeline import prepared, rewritten, seen
from qconvert.pipeline.calibrate import Job
from qconvert.pipeline.choosing import AUTO, Tried, try_methods
from qconvert.pipeline.halves import halved, largest
from qconvert.pipeline.place import require_place
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.requests import (
    Request,
    require_fitting,
    require_ranges,
    require_sense,
    rest_of,
    scheme_for,
    wishes_of,
)
from qconvert.pipeline.seen import Seen
from qconvert.quantize import plan as plans
from qconvert.quantize.placement import place
from qconvert.quantize.plan import Plan
from qconvert.quantize.planning import make_plan, require_float, require_some
from qconvert.quantize.rewrite import apply
from qconvert.quantize.scheme import Scheme
from qconvert.store import Store

NOT_RUN = "not run here: ONNX Runtime has no bf16 kernels for the CPU"
UNSEEN = "without calibration nothing is known of overflow: add `--images`"


@dataclass(frozen=True)
class Quantized:
    """The model that was made, and how.

    `islands` are the nodes that half precision left in float32, each with its reason; `tried` has
    every range method where one was chosen.
    """

    prepared: Prepared
    model: ir.Model
    plan: Plan | None
    islands: dict[str, str]
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]


def quantize(config: Config, request: Request, store: Store, tell: Tell) -> Quantized:
    """Rewrite `config.model` for a backend and write it; refuse what makes no sense there."""
    wants = backends.wants(request.backend)
    require_sense(config, request, wants)
    require_ranges(config, request)
    require_place(request.out)
    ready = prepared.load(config, store, tell, trust=request.trust)
    if request.precision == "int8" and request.plan is None:
        # Asked before any image is run: patterns that match nothing, nothing to quantize.
        require_float(ready.model)
        selection = wishes_of(config).selection
        require_some(place(ready.model, scheme_for(config, wants), observe(ready.model), selection))
    found = _seen(ready, config, request, store, tell)
    plan: Plan | None = None
    tried: Sequence[Tried] = ()
    if request.plan is not None:
        plan = plans.load(request.plan)
        require_fitting(plan, config, request)
    elif found is not None and request.precision == "int8":
        plan, tried = _plan(ready, config, scheme_for(config, wants), found, tell)
    model, islands = _rewrite(ready, request, plan, found, tell)
    notes = [*(wants.notes if plan is not None else ()), *_unknown(request, plan, found)]
    rewritten.write(model, request.out, onnx_io.weight_bytes(ready.model), tell)
    return Quantized(ready, model, plan, islands, tuple(tried), tuple(notes))


def _seen(
    ready: Prepared, config: Config, request: Request, store: Store, tell: Tell
) -> Seen | None:
    """Return what calibration saw, None where there is nothing to look at or a plan knows all."""
    if request.calibration is not None:
        return seen.from_file(ready, config, request.calibration)
    if config.calibration.images is not None and request.plan is None:
        job = Job(request.out, request.workers, trust=request.trust)
        return seen.measured(ready, config, job, store, tell)
    return None


def _plan(
    ready: Prepared, config: Config, scheme: Scheme, found: Seen, tell: Tell
) -> tuple[Plan, Sequence[Tried]]:
    """Make a plan, with the method that the settings name or the best of all."""
    wishes = wishes_of(config)
    tried: Sequence[Tried] = ()
    if wishes.method == AUTO:
        tried = try_methods(ready, scheme, found, wishes, tell)
        wishes = replace(wishes, method=tried[0].method)
    return make_plan(ready.model, scheme, found.whole.summaries, wishes), tried


def _rewrite(
    ready: Prepared, request: Request, plan: Plan | None, found: Seen | None, tell: Tell
) -> tuple[ir.Model, dict[str, str]]:
    """Return the model as the plan and the precision want it, and what stayed in float32."""
    started = time.perf_counter()
    model, rest = ready.model, rest_of(request, plan)
    islands: dict[str, str] = {}
    if plan is not None:
        model = apply(model, plan)
    if rest != "fp32":
        known = largest(ready.model, found.whole if found is not None else None)
        done = halved(model, rest, known, keep_io=request.keep_io)
        model, islands = done.model, done.islands
    model = rewritten.signed(model, plan, islands)
    if rest != "bf16":
        rewritten.require_sound(model, ready)
    text = _told(plan, rest, len(islands), len(model.graph))
    tell(Progress("quantize", text, time.perf_counter() - started))
    return model, islands


def _unknown(request: Request, plan: Plan | None, found: Seen | None) -> list[str]:
    """Say what nobody looked at."""
    rest = rest_of(request, plan)
    notes = [UNSEEN] if rest == "fp16" and found is None else []
    return [*notes, NOT_RUN] if rest == "bf16" else notes


def _told(plan: Plan | None, rest: str, islands: int, nodes: int) -> str:
    parts = []
    if plan is not None:
        left = len(plan.layers) - plan.quantized
        parts.append(f"{plan.quantized} of {len(plan.layers)} nodes to int8 ({plan.scheme})")
        parts += [f"{left} left in float"] if left else []
    if rest != "fp32":
        parts.append(f"the rest in {rest}" if plan is not None else f"{nodes} nodes in {rest}")
        parts += [f"{islands} of them stay in fp32"] if islands else []
    return ", ".join(parts)
