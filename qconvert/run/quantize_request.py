"""What the job `quantize` is to do, and the checks of it before any work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import EngineVariant
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import UsageError
from qconvert.core.formats import FORMATS, Precision
from qconvert.optimize.calibration_set import MISSING_IMAGES, MISSING_IMAGES_HINT
from qconvert.quantize.placement import AUTO_METHOD, OUTPUT_ERROR_METHOD
from qconvert.quantize.plan import Plan
from qconvert.run.context import JobContext
from qconvert.run.quantized_source import FloatModel
from qconvert.run.training import TRAIN, require_torch

# What a float model can be converted to.
PRECISIONS: tuple[Precision, ...] = (*FORMATS, "fp16", "bf16")


@dataclass(frozen=True)
class QuantizeRequest:
    """What to convert to, and the inputs; with a `plan` no images or calibration are needed."""

    out: Path
    backend: str
    precision: Precision
    calibration: Path | None = None
    plan: Path | None = None
    keep_io: bool = True


def require_float_source(source: FloatModel, variants: Sequence[EngineVariant]) -> None:
    """Raise for a format that cannot keep the scales which a model was trained with."""
    for variant in variants:
        if source.trained is not None and variant.is_quantized and not variant.needs_ranges:
            raise UsageError(
                f"`{source.loaded.source.name}` is quantized already, and {variant.precision} "
                "cannot keep its scales",
                hint="choose `--precision int8`, or quantize the float model it was made from",
            )


def require_portable_has_effect(settings: QuantizeConfig, names: Sequence[str]) -> None:
    """Raise where pairs of weights should be limited, and no backend adds them in 16 bits."""
    schemes = [backends.requirements(name).schemes.get("int8") for name in names]
    if settings.portable and not any(scheme and scheme.integer_bias for scheme in schemes):
        targets = ", ".join(f"`{name}`" for name in names)
        raise UsageError(
            f"`--portable` is for `cpu`: {targets} adds products in 32 bits",
            hint="leave `--portable` out",
        )


def require_settings_have_effect(
    settings: QuantizeConfig, variants: Sequence[EngineVariant]
) -> None:
    """Raise for a setting of ranges or of groups where no variant has any."""
    quantized = [variant for variant in variants if variant.is_quantized]
    weights_only = [FORMATS[variant.format].weights_only for variant in quantized]
    grouped = {"--group": settings.group, "--zero-points": settings.zero_points}
    for option, value in grouped.items():
        if value is not None and not any(weights_only):
            raise UsageError(
                f"`{option}` is for weight-only formats, and none is asked for",
                hint=f"leave `{option}` out, or ask for `--precision int4-weights`",
            )
    for variant in quantized if settings.zero_points else ():
        scheme = backends.requirements(variant.backend).schemes[variant.format]
        if FORMATS[variant.format].weights_only and scheme.kernels == "onnx":
            raise UsageError(
                f"`{variant.backend}` reads no zero points of weights",
                hint="leave `--zero-points` out: it is for `cpu`",
            )
    if not quantized or any(variant.needs_ranges for variant in quantized):
        return
    defaults = QuantizeConfig()
    options = {
        "--method": settings.method != defaults.method,
        "--activation-bits": settings.activation_bits != defaults.activation_bits,
        "--effort train": settings.effort == TRAIN,
        "--weight-bits": all(weights_only) and settings.weight_bits != defaults.weight_bits,
    }
    if option := next((name for name, is_set in options.items() if is_set), ""):
        name = quantized[0].precision
        raise UsageError(
            f"`{option}` has no effect: {name} has no ranges of activations",
            hint=f"leave `{option}` out, or ask for `--precision int8`",
        )


def require_supported(context: JobContext, request: QuantizeRequest) -> None:
    """Raise for a request that the backend does not support, before any work."""
    requirements = backends.requirements(request.backend)
    settings, images = context.config.quantize, context.config.calibration.images
    if request.out.suffix != ".onnx":
        raise UsageError(
            f"`{request.out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`"
        )
    if why := requirements.why_not(request.precision):
        supported = [name for name in PRECISIONS if not requirements.why_not(name)]
        raise UsageError(
            f"no {request.precision} for `{request.backend}`: {why}",
            hint=f"it supports {', '.join(supported)}",
        )
    if "names" in context.config.prepare.skip:
        raise UsageError(
            "a plan names nodes, so the pass `names` cannot be skipped",
            hint="leave `names` out of `prepare.skip`",
        )
    variant = EngineVariant(request.backend, request.precision)
    if not variant.is_quantized:
        options = {"--rest": settings.rest is not None, "--plan": request.plan is not None}
        options |= _node_options(settings)
        if option := next((name for name, is_set in options.items() if is_set), ""):
            raise UsageError(
                f"`{option}` is for integers; {request.precision} converts the whole model",
                hint=f"leave `{option}` out, or ask for `--precision int8`",
            )
        return
    require_portable_has_effect(settings, [request.backend])
    require_settings_have_effect(settings, [variant])
    require_torch(settings)
    if settings.rest is not None and settings.rest not in requirements.rests:
        raise UsageError(
            f"beside integers `{request.backend}` computes in {' or '.join(requirements.rests)}, "
            f"not {settings.rest}",
            hint=f"leave `--rest` out, or choose `--rest {requirements.rests[0]}`",
        )
    if not request.keep_io and settings.rest in (None, "fp32") and request.plan is None:
        raise UsageError(
            "`--half-io` has no effect: no part of the model is in half precision",
            hint="leave it out, or add `--rest fp16`",
        )
    needs_images = settings.method in (AUTO_METHOD, OUTPUT_ERROR_METHOD)
    if needs_images and images is None and request.calibration is not None:
        raise UsageError(MISSING_IMAGES, hint=MISSING_IMAGES_HINT)


def require_matching_plan(plan: Plan, settings: QuantizeConfig, request: QuantizeRequest) -> None:
    """Raise for a plan of another backend, and for settings that the plan decides."""
    requirements = backends.requirements(request.backend)
    if plan.rest not in requirements.rests:
        raise UsageError(
            f"`{request.plan}` needs {plan.rest} beside integers, which `{request.backend}` "
            "does not support",
            hint=f'write "rest": "{requirements.rests[0]}" into the plan',
        )
    if plan.scheme != request.backend:
        raise UsageError(
            f"`{request.plan}` is a plan for `{plan.scheme}`, not for `{request.backend}`",
            hint=f"`--backend {plan.scheme}`, or make a plan for `{request.backend}`",
        )
    if plan.precision != request.precision:
        raise UsageError(
            f"`{request.plan}` is a plan for {plan.precision}, not for {request.precision}",
            hint=f"`--precision {plan.precision}`, or make a plan for {request.precision}",
        )
    options = {
        "--rest": settings.rest not in (None, plan.rest),
        **_node_options(settings),
        "--method": settings.method is not None,
        "--weight-bits": settings.weight_bits != QuantizeConfig().weight_bits,
        "--activation-bits": settings.activation_bits != QuantizeConfig().activation_bits,
        "--portable": settings.portable is True and not plan.portable,
        "--no-portable": settings.portable is False and plan.portable,
        "--effort train": settings.effort == TRAIN,
        "--group": settings.group is not None,
        "--zero-points": settings.zero_points is not None,
    }
    if option := next((name for name, is_set in options.items() if is_set), ""):
        raise UsageError(
            f"`{option}` is decided by the plan of `--plan`",
            hint=f"edit the plan, or leave `{option}` out",
        )


def _node_options(settings: QuantizeConfig) -> dict[str, bool]:
    return {f"--{name}": bool(getattr(settings, name)) for name in ("exclude", "only", "keep")}
