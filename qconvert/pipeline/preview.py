"""What would be quantized of a model, without looking at any image."""

from pathlib import Path

from qconvert import backends, sources
from qconvert.config import Config
from qconvert.errors import UsageError
from qconvert.graph.observed import observe
from qconvert.graph.patterns import is_quantized
from qconvert.pipeline import prepared
from qconvert.pipeline.progress import silent
from qconvert.pipeline.requests import Request, require_sense, wishes_of
from qconvert.quantize.found import layers_of, plan_of
from qconvert.quantize.placement import place
from qconvert.quantize.plan import Layer
from qconvert.quantize.planning import require_float
from qconvert.store import Store


def layers(config: Config, request: Request, store: Store) -> dict[str, Layer]:
    """Return the layer that a backend's scheme gives to each node that could be quantized."""
    wants = backends.wants(request.backend)
    require_sense(config, request, wants)
    if wants.scheme is None or request.precision != "int8":
        raise UsageError(
            f"{request.precision} is written into every node; there is nothing to choose",
            hint="`--precision int8` has a plan to look at",
        )
    ready = prepared.load(config, store, silent, trust=request.trust)
    require_float(ready.model)
    return place(ready.model, wants.scheme, observe(ready.model), wishes_of(config).selection)


def inspected(config: Config, backend: str, store: Store, *, trust: bool) -> dict[str, Layer]:
    """Return what is quantized of a model, by its plan or its graph, or else what would be."""
    model = sources.load(str(config.model), config.export, trust=trust).model
    plan = plan_of(model)
    if plan is not None:
        return plan.layers
    if is_quantized(model):
        return layers_of(model)
    return layers(config, Request(Path("model.onnx"), backend, "int8", trust=trust), store)
