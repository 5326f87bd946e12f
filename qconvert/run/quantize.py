"""The job `quantize`: from a model and its calibration to one ONNX file in another precision."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qconvert import backends, sources
from qconvert.backends.base import BackendRequirements
from qconvert.calibrate import methods
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import UsageError
from qconvert.core.progress import megabytes, start_step
from qconvert.graph.patterns import is_quantized
from qconvert.images.preprocess import Preprocess
from qconvert.optimize.calibration_set import (
    MISSING_IMAGES,
    MISSING_IMAGES_HINT,
    CalibrationSet,
)
from qconvert.quantize import plan_files
from qconvert.quantize.placement import require_quantizable
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.quantize.plan_files import read_embedded_plan, read_layers
from qconvert.quantize.ranges import AUTO_METHOD, OUTPUT_ERROR_METHOD
from qconvert.run.calibrate import load_calibration_set, measure_calibration_set
from qconvert.run.context import JobContext, known_preprocessing, with_preprocessing
from qconvert.run.load_model import load_and_clean
from qconvert.run.quantize_model import (
    QuantizedModel,
    QuantizeSpec,
    convert_precision,
    place_layers,
    quantize_options,
    scheme_for,
)
from qconvert.run.run_folder import require_output_file
from qconvert.sources import LoadedModel

DEFAULT_WEIGHT_BITS = 8


@dataclass(frozen=True)
class QuantizeRequest:
    """What to make, and from what; with a `plan` neither images nor a calibration are needed."""

    out: Path
    backend: str
    precision: Literal["int8", "fp16", "bf16"]
    calibration: Path | None = None
    plan: Path | None = None
    keep_io: bool = True
    workers: int = 1


@dataclass(frozen=True)
class Quantized:
    """A converted model, the one it was made from, and what to know before running it."""

    loaded: LoadedModel
    quantized: QuantizedModel
    notes: tuple[str, ...]


def quantize(context: JobContext, request: QuantizeRequest) -> Quantized:
    """Convert the model of the settings for a backend, and write it."""
    _require_supported(context, request)
    _require_range_source(context, request)
    require_output_file(request.out)
    loaded = load_and_clean(context)
    spec = _quantize_spec(context.config.quantize, request, loaded)
    calibration = _load_calibration(loaded, context, request)
    preprocess = _preprocessing(loaded, context, calibration)
    loaded = replace(loaded, model=with_preprocessing(loaded.model, preprocess))
    result = convert_precision(loaded, calibration, spec, context)
    _write(result, loaded, request.out, context)
    notes = backends.requirements(request.backend).notes if result.plan is not None else ()
    return Quantized(loaded, result, (*notes, *result.notes))


def preview_layers(context: JobContext, request: QuantizeRequest) -> dict[str, LayerPlan]:
    """Return how the scheme of a backend would quantize each node, without any image."""
    requirements = backends.requirements(request.backend)
    _require_supported(context, request)
    if requirements.scheme is None or request.precision != "int8":
        raise UsageError(
            f"{request.precision} converts every node; there is nothing to choose",
            hint="`--precision int8` has a plan to look at",
        )
    return place_layers(load_and_clean(context).model, context.config.quantize, requirements)


def inspect_layers(context: JobContext, backend: str) -> dict[str, LayerPlan]:
    """Return what is quantized of a model, by its plan or its graph, or else what would be."""
    config = context.config
    model = sources.load(str(config.model), config.export, trust=context.trust).model
    plan = read_embedded_plan(model)
    if plan is not None:
        return plan.layers
    if is_quantized(model):
        return read_layers(model)
    return preview_layers(context, QuantizeRequest(Path("model.onnx"), backend, "int8"))


def _quantize_spec(
    settings: QuantizeConfig, request: QuantizeRequest, loaded: LoadedModel
) -> QuantizeSpec:
    """Return the spec, and raise for what no image would change before any image is run."""
    requirements = backends.requirements(request.backend)
    name, options = f"{request.backend}-{request.precision}", quantize_options(settings)
    spec = QuantizeSpec(name, options, keep_io=request.keep_io, workers=request.workers)
    if request.precision != "int8":
        return replace(spec, options=replace(options, rest=request.precision))
    if request.plan is not None:
        saved = plan_files.load_plan(request.plan)
        _require_matching_plan(saved.plan, settings, request, requirements)
        return replace(spec, plan=saved.plan, rounded_weights=saved.weights)
    require_quantizable(place_layers(loaded.model, settings, requirements))
    return replace(spec, scheme=scheme_for(settings, requirements), effort=settings.effort)


def _load_calibration(
    loaded: LoadedModel, context: JobContext, request: QuantizeRequest
) -> CalibrationSet | None:
    """Return the calibration; None without images, or if a plan has all ranges."""
    if request.calibration is not None:
        return load_calibration_set(loaded, context, request.calibration)
    if context.config.calibration.images is not None and request.plan is None:
        return measure_calibration_set(loaded, context, request.workers)
    return None


def _preprocessing(
    loaded: LoadedModel, context: JobContext, calibration: CalibrationSet | None
) -> Preprocess | None:
    """Return the preprocessing of the calibration, else that of the settings or the source."""
    if calibration is not None and calibration.full.origin.preprocessing:
        return Preprocess.from_dict(calibration.full.origin.preprocessing)
    return known_preprocessing(loaded.source, context.config.preprocess)


def _write(result: QuantizedModel, loaded: LoadedModel, out: Path, context: JobContext) -> None:
    """Write the model, and report its size beside that of the float weights."""
    end = start_step(context.progress, "write")
    onnx_io.save(result.model, out)
    size = sum(file.stat().st_size for file in onnx_io.model_files(out))
    before = onnx_io.weight_bytes(loaded.model)
    share = f", {size / before:.0%} of {megabytes(before)}" if before else ""
    end(f"{out}, {megabytes(size)}{share}, sha256 {file_sha256(out)[:12]}", False)


def _require_supported(context: JobContext, request: QuantizeRequest) -> None:
    """Raise for a request that makes no sense for its backend, before any work."""
    requirements = backends.requirements(request.backend)
    if request.out.suffix != ".onnx":
        raise UsageError(
            f"`{request.out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`"
        )
    if why := requirements.unsupported.get(request.precision):
        supported = [
            name for name in ("fp16", "bf16", "int8") if name not in requirements.unsupported
        ]
        raise UsageError(
            f"no {request.precision} for `{request.backend}`: {why}",
            hint=f"it takes {' and '.join(supported)}",
        )
    if "names" in context.config.prepare.skip:
        raise UsageError(
            "a plan names nodes, so the pass `names` cannot be skipped",
            hint="leave `names` out of `prepare.skip`",
        )
    settings = context.config.quantize
    if request.precision == "int8":
        _require_supported_int8(context, request, requirements)
        return
    options = {"--rest": settings.rest is not None, "--plan": request.plan is not None}
    for option in _set_options(options | _node_options(settings)):
        raise UsageError(
            f"`{option}` is for INT8; {request.precision} converts the whole model",
            hint=f"leave `{option}` out, or ask for `--precision int8`",
        )


def _require_supported_int8(
    context: JobContext, request: QuantizeRequest, requirements: BackendRequirements
) -> None:
    settings, images = context.config.quantize, context.config.calibration.images
    if settings.rest is not None and settings.rest not in requirements.rests:
        raise UsageError(
            f"beside INT8 `{request.backend}` computes in {' or '.join(requirements.rests)}, "
            f"not {settings.rest}",
            hint=f"leave `--rest` out, or choose `--rest {requirements.rests[0]}`",
        )
    if not request.keep_io and settings.rest in (None, "fp32") and request.plan is None:
        raise UsageError(
            "`--half-io` is for half precision, and nothing here is half",
            hint="leave it out, or add `--rest fp16`",
        )
    if settings.method in (AUTO_METHOD, OUTPUT_ERROR_METHOD):
        if images is None and request.calibration is not None:
            raise UsageError(MISSING_IMAGES, hint=MISSING_IMAGES_HINT)
    elif settings.method is not None:
        methods.find_method(settings.method)


def _require_range_source(context: JobContext, request: QuantizeRequest) -> None:
    sources_of_ranges = (context.config.calibration.images, request.calibration, request.plan)
    if request.precision == "int8" and all(path is None for path in sources_of_ranges):
        raise UsageError(
            "INT8 needs the value range of every tensor",
            hint="measure them on images: `--images PATH`, or give `--calibration FILE`",
        )


def _require_matching_plan(
    plan: Plan,
    settings: QuantizeConfig,
    request: QuantizeRequest,
    requirements: BackendRequirements,
) -> None:
    """Raise for a plan of another backend, and for settings that the plan decides."""
    if plan.rest not in requirements.rests:
        raise UsageError(
            f"`{request.plan}` needs {plan.rest} beside INT8, which `{request.backend}` "
            "does not support",
            hint=f'write "rest": "{requirements.rests[0]}" into the plan',
        )
    if plan.scheme != request.backend:
        raise UsageError(
            f"`{request.plan}` is a plan for `{plan.scheme}`, not for `{request.backend}`",
            hint=f"`--backend {plan.scheme}`, or make a plan for `{request.backend}`",
        )
    options = {
        "--rest": settings.rest not in (None, plan.rest),
        **_node_options(settings),
        "--method": settings.method is not None,
        "--weight-bits": settings.weight_bits != DEFAULT_WEIGHT_BITS,
    }
    for option in _set_options(options):
        raise UsageError(
            f"`{option}` is decided by the plan of `--plan`",
            hint=f"edit the plan, or leave `{option}` out",
        )


def _set_options(options: Mapping[str, bool]) -> list[str]:
    return [name for name, is_set in options.items() if is_set]


def _node_options(settings: QuantizeConfig) -> dict[str, bool]:
    """Return which of the options that choose nodes are set."""
    return {
        "--exclude": bool(settings.exclude),
        "--only": bool(settings.only),
        "--keep": bool(settings.keep),
    }
