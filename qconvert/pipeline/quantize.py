"""From a model and what calibration saw of it to one ONNX file that carries its precision."""

from dataclasses import dataclass, replace

from qconvert import backends, onnx_io
from qconvert.config import Config
from qconvert.images.preprocess import Preprocess
from qconvert.pipeline import pictures, prepared, requests, rewritten, seen
from qconvert.pipeline.calibrate import Job
from qconvert.pipeline.place import require_place
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.requests import Request
from qconvert.pipeline.rewriting import How, Rewritten, rewrite
from qconvert.pipeline.seen import Seen
from qconvert.quantize import plan_files
from qconvert.store import Store


@dataclass(frozen=True)
class Quantized:
    """A rewritten model, the one it was made from, and what running it needs."""

    prepared: Prepared
    rewritten: Rewritten
    notes: tuple[str, ...]


def quantize(config: Config, request: Request, store: Store, tell: Tell) -> Quantized:
    """Rewrite `config.model` for a backend and write it; refuse what makes no sense there."""
    wants = backends.wants(request.backend)
    requests.require_sense(config, request, wants)
    requests.require_ranges(config, request)
    require_place(request.out)
    ready = prepared.load(config, store, tell, trust=request.trust)
    how = _how(config, request, ready)
    found = _seen(ready, config, request, store, tell)
    ready = replace(ready, model=pictures.signed(ready.model, _pictures(ready, config, found)))
    done = rewrite(ready, found, how, store, tell)
    rewritten.write(done.model, request.out, onnx_io.weight_bytes(ready.model), tell)
    notes = wants.notes if done.plan is not None else ()
    return Quantized(ready, done, (*notes, *done.notes))


def _pictures(ready: Prepared, config: Config, found: Seen | None) -> Preprocess | None:
    """Return what is known of the preprocessing; a calibration knows what it was fed."""
    told = found.whole.origin.preprocessing if found is not None else None
    return Preprocess.from_dict(told) if told else pictures.preprocessing(ready.source, config)


def _how(config: Config, request: Request, ready: Prepared) -> How:
    """Settle what is asked for, and refuse before any image is run what no image would change."""
    name = f"{request.backend}-{request.precision}"
    wishes = requests.wishes_of(config)
    if request.precision != "int8":
        wishes = replace(wishes, rest=request.precision)
        return How(name, wishes, keep_io=request.keep_io)
    if request.plan is not None:
        planned = plan_files.load(request.plan)
        requests.require_fitting(planned.plan, config, request, backends.wants(request.backend))
        return How(
            name, wishes, plan=planned.plan, learned=planned.weights, keep_io=request.keep_io
        )
    scheme = requests.scheme_for(config, backends.wants(request.backend))
    requests.require_placed(ready.model, config, backends.wants(request.backend))
    return How(name, wishes, scheme, effort=config.quantize.effort, keep_io=request.keep_io)


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
