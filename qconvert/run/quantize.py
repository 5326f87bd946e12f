"""From a model and what calibration saw of it to one ONNX file that carries its precision."""

from dataclasses import dataclass, replace
from pathlib import Path

from qconvert import backends, sources
from qconvert.core import onnx_io
from qconvert.core.cache import Cache
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.core.progress import ProgressCallback, ignore_progress
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.graph.patterns import is_quantized
from qconvert.images.preprocess import Preprocess
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize import plan_files
from qconvert.quantize.placement import place_quantizers, require_float_model
from qconvert.quantize.plan import LayerPlan
from qconvert.quantize.plan_files import read_embedded_plan, read_layers
from qconvert.run import calibration_sets, job_images, load_model, quantize_model, validate
from qconvert.run.calibrate import CalibrationRequest
from qconvert.run.quantize_model import QuantizedModel, QuantizeSpec, convert_precision
from qconvert.run.run_folder import require_output_file
from qconvert.run.validate import QuantizeRequest, quantize_options, require_supported
from qconvert.sources import LoadedModel


def preview_layers(config: Config, request: QuantizeRequest, store: Cache) -> dict[str, LayerPlan]:
    """Return the layer that a backend's scheme gives to each node that could be quantized."""
    wants = backends.requirements(request.backend)
    require_supported(config, request, wants)
    if wants.scheme is None or request.precision != "int8":
        raise UsageError(
            f"{request.precision} is written into every node; there is nothing to choose",
            hint="`--precision int8` has a plan to look at",
        )
    ready = load_model.load_and_clean(config, store, ignore_progress, trust=request.trust)
    require_float_model(ready.model)
    return place_quantizers(
        ready.model,
        wants.scheme,
        find_observed_tensors(ready.model),
        quantize_options(config).selection,
    )


def inspect_layers(
    config: Config, backend: str, store: Cache, *, trust: bool
) -> dict[str, LayerPlan]:
    """Return what is quantized of a model, by its plan or its graph, or else what would be."""
    model = sources.load(str(config.model), config.export, trust=trust).model
    plan = read_embedded_plan(model)
    if plan is not None:
        return plan.layers
    if is_quantized(model):
        return read_layers(model)
    return preview_layers(
        config, QuantizeRequest(Path("model.onnx"), backend, "int8", trust=trust), store
    )


@dataclass(frozen=True)
class Quantized:
    """A rewritten model, the one it was made from, and what running it needs."""

    loaded: LoadedModel
    quantized: QuantizedModel
    notes: tuple[str, ...]


def quantize(
    config: Config, request: QuantizeRequest, store: Cache, tell: ProgressCallback
) -> Quantized:
    """Rewrite `config.model` for a backend and write it; refuse what makes no sense there."""
    wants = backends.requirements(request.backend)
    validate.require_supported(config, request, wants)
    validate.require_range_source(config, request)
    require_output_file(request.out)
    ready = load_model.load_and_clean(config, store, tell, trust=request.trust)
    how = _quantize_spec(config, request, ready)
    found = _load_calibration(ready, config, request, store, tell)
    ready = replace(
        ready,
        model=job_images.with_preprocessing(ready.model, _preprocessing(ready, config, found)),
    )
    done = convert_precision(ready, found, how, store, tell)
    quantize_model.write_model(done.model, request.out, onnx_io.weight_bytes(ready.model), tell)
    notes = wants.notes if done.plan is not None else ()
    return Quantized(ready, done, (*notes, *done.notes))


def _preprocessing(
    ready: LoadedModel, config: Config, found: CalibrationSet | None
) -> Preprocess | None:
    """Return what is known of the preprocessing; a calibration knows what it was fed."""
    told = found.full.origin.preprocessing if found is not None else None
    return (
        Preprocess.from_dict(told) if told else job_images.known_preprocessing(ready.source, config)
    )


def _quantize_spec(config: Config, request: QuantizeRequest, ready: LoadedModel) -> QuantizeSpec:
    """Settle what is asked for, and refuse before any image is run what no image would change."""
    name = f"{request.backend}-{request.precision}"
    wishes = validate.quantize_options(config)
    if request.precision != "int8":
        wishes = replace(wishes, rest=request.precision)
        return QuantizeSpec(name, wishes, keep_io=request.keep_io)
    if request.plan is not None:
        planned = plan_files.load_plan(request.plan)
        validate.require_matching_plan(
            planned.plan, config, request, backends.requirements(request.backend)
        )
        return QuantizeSpec(
            name,
            wishes,
            plan=planned.plan,
            rounded_weights=planned.weights,
            keep_io=request.keep_io,
        )
    scheme = validate.scheme_for(config, backends.requirements(request.backend))
    validate.require_quantizable_nodes(ready.model, config, backends.requirements(request.backend))
    return QuantizeSpec(
        name, wishes, scheme, effort=config.quantize.effort, keep_io=request.keep_io
    )


def _load_calibration(
    ready: LoadedModel,
    config: Config,
    request: QuantizeRequest,
    store: Cache,
    tell: ProgressCallback,
) -> CalibrationSet | None:
    """Return what calibration saw, None where there is nothing to look at or a plan knows all."""
    if request.calibration is not None:
        return calibration_sets.load(ready, config, request.calibration)
    if config.calibration.images is not None and request.plan is None:
        job = CalibrationRequest(request.out, request.workers, trust=request.trust)
        return calibration_sets.measure(ready, config, job, store, tell)
    return None
