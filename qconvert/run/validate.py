"""What can be asked of `quantize`, and what makes no sense for a backend."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from qconvert.backends.base import BackendRequirements
from qconvert.calibrate import methods
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.core.scales import Grid
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.optimize.efforts import EFFORTS
from qconvert.quantize.placement import (
    QuantizeOptions,
    place_quantizers,
    require_float_model,
    require_quantizable,
)
from qconvert.quantize.plan import Plan
from qconvert.quantize.ranges import AUTO_METHOD, OUTPUT_ERROR_METHOD
from qconvert.quantize.scheme import Scheme
from qconvert.quantize.selection import Selection

DEFAULT_WEIGHT_BITS, FULL_PRECISION = 8, "fp32"

RewritePrecision = Literal["int8", "fp16", "bf16"]


@dataclass(frozen=True)
class QuantizeRequest:
    """What to make, and from what; with a `plan` neither images nor a calibration are needed."""

    out: Path
    backend: str
    precision: RewritePrecision
    calibration: Path | None = None
    plan: Path | None = None
    keep_io: bool = True
    workers: int = 1
    trust: bool = False


def require_supported(config: Config, request: QuantizeRequest, wants: BackendRequirements) -> None:
    """Refuse what a backend has no use for, before any work."""
    if request.out.suffix != ".onnx":
        raise UsageError(
            f"`{request.out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`"
        )
    if why := wants.unsupported.get(request.precision):
        raise UsageError(
            f"no {request.precision} for `{request.backend}`: {why}",
            hint=_supported_precisions(wants),
        )
    if "names" in config.prepare.skip:
        raise UsageError(
            "a plan names nodes, so that the pass `names` cannot be skipped",
            hint="leave `names` out of `prepare.skip`",
        )
    if request.precision == "int8":
        _require_int8(config, request, wants)
    else:
        _require_half(config, request)


def _require_int8(config: Config, request: QuantizeRequest, wants: BackendRequirements) -> None:
    chosen = config.quantize
    if chosen.rest is not None and chosen.rest not in wants.rests:
        offered = " or ".join(wants.rests)
        raise UsageError(
            f"beside INT8 `{request.backend}` computes in {offered}, not {chosen.rest}",
            hint=f"leave `--rest` out, or choose `--rest {wants.rests[0]}`",
        )
    if not request.keep_io and chosen.rest in (None, FULL_PRECISION) and request.plan is None:
        raise UsageError(
            "`--half-io` is for half precision, and nothing here is half",
            hint="leave it out, or add `--rest fp16`",
        )
    if chosen.method in (AUTO_METHOD, OUTPUT_ERROR_METHOD):
        _require_images(config, request)
    elif chosen.method is not None:
        methods.find_method(chosen.method)


def _require_images(config: Config, request: QuantizeRequest) -> None:
    """Refuse to choose between methods without pictures to choose by."""
    if config.calibration.images is None and request.calibration is not None:
        raise UsageError(
            "choosing a method needs some of the calibration images again",
            hint="say where they are: `--images PATH`, or choose a method: `--method mse`",
        )


def _require_half(config: Config, request: QuantizeRequest) -> None:
    """Refuse what chooses nodes: half precision is for all of them."""
    chosen = config.quantize
    given = {
        "--rest": chosen.rest is not None,
        "--plan": request.plan is not None,
        "--exclude": bool(chosen.exclude),
        "--only": bool(chosen.only),
        "--keep": bool(chosen.keep),
    }
    for name, value in given.items():
        if value:
            raise UsageError(
                f"`{name}` is for INT8; {request.precision} rewrites the whole model",
                hint=f"leave `{name}` out, or ask for `--precision int8`",
            )


def require_range_source(config: Config, request: QuantizeRequest) -> None:
    """Refuse INT8 of which nobody said where its ranges come from."""
    blind = config.calibration.images is None and request.calibration is None
    if request.precision == "int8" and blind and request.plan is None:
        raise UsageError(
            "INT8 needs to know which values the tensors take",
            hint="measure them on pictures: `--images PATH`, or give `--calibration FILE`",
        )


def scheme_for(config: Config, wants: BackendRequirements) -> Scheme:
    """Return the scheme of a backend, with weights of as many bits as the user wants."""
    assert wants.scheme is not None
    return replace(wants.scheme, weights=Grid(config.quantize.weight_bits))


def quantize_options(config: Config) -> QuantizeOptions:
    """Return what the settings decide about a plan."""
    chosen = config.quantize
    selection = Selection(chosen.exclude, chosen.only, chosen.keep)
    method = chosen.method or EFFORTS[chosen.effort].method
    return QuantizeOptions(method, {}, chosen.weight_scales, chosen.rest or "fp32", selection)


def require_matching_plan(
    plan: Plan, config: Config, request: QuantizeRequest, wants: BackendRequirements
) -> None:
    """Refuse a plan of another backend, and settings that the plan has decided already."""
    if plan.rest not in wants.rests:
        raise UsageError(
            f"`{request.plan}` wants {plan.rest} beside INT8, which `{request.backend}` does not",
            hint=f'write "rest": "{wants.rests[0]}" into the plan',
        )
    if plan.scheme != request.backend:
        raise UsageError(
            f"`{request.plan}` is a plan for `{plan.scheme}`, not for `{request.backend}`",
            hint=f"`--backend {plan.scheme}`, or make a plan for `{request.backend}`",
        )
    chosen = config.quantize
    decided = {"--rest": chosen.rest not in (None, plan.rest)}
    patterns = {"--exclude": chosen.exclude, "--only": chosen.only, "--keep": chosen.keep}
    decided |= {name: bool(value) for name, value in patterns.items()}
    decided |= {
        "--method": chosen.method is not None,
        "--weight-bits": chosen.weight_bits != DEFAULT_WEIGHT_BITS,
    }
    given = [name for name, value in decided.items() if value]
    if given:
        raise UsageError(
            f"`--plan` decides what `{given[0]}` would",
            hint=f"edit the plan, or leave `{given[0]}` out",
        )


def _supported_precisions(wants: BackendRequirements) -> str:
    offered = [each for each in ("fp16", "bf16", "int8") if each not in wants.unsupported]
    return "it takes " + " and ".join(offered)


def require_quantizable_nodes(model: ir.Model, config: Config, wants: BackendRequirements) -> None:
    """Refuse a model of which a backend would round nothing, before any picture is run."""
    require_float_model(model)
    selection = quantize_options(config).selection
    require_quantizable(
        place_quantizers(model, scheme_for(config, wants), find_observed_tensors(model), selection)
    )
