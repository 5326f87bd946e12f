"""What can be asked of `quantize`, and what makes no sense for a backend."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qconvert.backends.base import Wants
from qconvert.calibrate import methods
from qconvert.config import Config
from qconvert.errors import UsageError
from qconvert.pipeline.choosing import AUTO, USUAL
from qconvert.quantize.plan import Plan
from qconvert.quantize.planning import Wishes
from qconvert.quantize.scheme import Scheme
from qconvert.quantize.selection import Selection
from qconvert.scales import Grid

BITS = 8

Precision = Literal["int8", "fp16", "bf16"]


@dataclass(frozen=True)
class Request:
    """What to make, and from what; with a `plan` neither images nor a calibration are needed."""

    out: Path
    backend: str
    precision: Precision
    calibration: Path | None = None
    plan: Path | None = None
    keep_io: bool = True
    workers: int = 1
    trust: bool = False


def require_sense(config: Config, request: Request, wants: Wants) -> None:
    """Refuse what a backend has no use for, before any work."""
    if request.out.suffix != ".onnx":
        raise UsageError(
            f"`{request.out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`"
        )
    if why := wants.refused.get(request.precision):
        raise UsageError(
            f"no {request.precision} for `{request.backend}`: {why}", hint=_other(wants)
        )
    rest = config.quantize.rest
    if request.precision == "int8" and rest is not None and rest not in wants.rests:
        raise UsageError(
            f"beside INT8 `{request.backend}` computes in {' or '.join(wants.rests)}, not {rest}",
            hint=f"leave `--rest` out, or choose `--rest {wants.rests[0]}`",
        )
    if request.precision != "int8" and (rest is not None or request.plan is not None):
        given = "--plan" if request.plan is not None else "--rest"
        raise UsageError(
            f"`{given}` is for INT8; {request.precision} rewrites the whole model",
            hint=f"leave `{given}` out, or ask for `--precision int8`",
        )
    chosen = config.quantize
    if request.precision != "int8" and (chosen.exclude or chosen.only or chosen.keep):
        raise UsageError(
            f"{request.precision} rewrites the whole model; no node is chosen",
            hint="`--exclude`, `--only` and `--keep` are for `--precision int8`",
        )
    if config.quantize.method != AUTO:
        methods.find(config.quantize.method)


def require_ranges(config: Config, request: Request) -> None:
    """Refuse INT8 of which nobody said where its ranges come from."""
    blind = config.calibration.images is None and request.calibration is None
    if request.precision == "int8" and blind and request.plan is None:
        raise UsageError(
            "INT8 needs to know which values the tensors take",
            hint="measure them on pictures: `--images PATH`, or give `--calibration FILE`",
        )


def scheme_for(config: Config, wants: Wants) -> Scheme:
    """Return the scheme of a backend, with weights of as many bits as the user wants."""
    assert wants.scheme is not None
    return replace(wants.scheme, weights=Grid(config.quantize.weight_bits))


def wishes_of(config: Config) -> Wishes:
    """Return what the settings decide about a plan."""
    chosen = config.quantize
    selection = Selection(chosen.exclude, chosen.only, chosen.keep)
    return Wishes(chosen.method, chosen.weight_scales, chosen.rest or "fp32", selection)


def require_fitting(plan: Plan, config: Config, request: Request, wants: Wants) -> None:
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
    decided |= {"--method": chosen.method != USUAL, "--weight-bits": chosen.weight_bits != BITS}
    given = [name for name, value in decided.items() if value]
    if given:
        raise UsageError(
            f"`--plan` decides what `{given[0]}` would",
            hint=f"edit the plan, or leave `{given[0]}` out",
        )


def _other(wants: Wants) -> str:
    offered = [each for each in ("fp16", "bf16", "int8") if each not in wants.refused]
    return "it takes " + " and ".join(offered)
