"""An ordered list of passes that clean a graph, each checked against the first outputs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert import onnx_io
from qconvert.config_errors import near
from qconvert.errors import QConvertError, UsageError, reason
from qconvert.feeds import Feeds
from qconvert.graph.batchnorm import fold_batchnorm
from qconvert.graph.constants import fold_constants
from qconvert.graph.names import name_all
from qconvert.graph.patterns import is_quantized
from qconvert.graph.simplify import infer_shapes, inline, simplify, upgrade

Rewrite = Callable[[ir.Model], tuple[ir.Model, str]]
Outputs = Callable[[ir.Model], Feeds]

TOLERANCE = 1e-4

QUANTIZED = "the model is quantized already; this would fold its scales into it"
LARGE = "the model is above 2 GB, which this pass cannot hold"


@dataclass(frozen=True)
class Pass:
    """One rewrite: its name, whether it may touch a quantized model or one above 2 GB."""

    name: str
    rewrite: Rewrite
    safe_for_quantized: bool = False
    safe_for_large: bool = False


@dataclass(frozen=True)
class Step:
    """What one pass did: what it changed, or why it was left out or taken back."""

    name: str
    changed: str
    dropped: str
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """The cleaned model and what was done to it."""

    model: ir.Model
    steps: tuple[Step, ...]
    quantized: bool


def passes(opset: int) -> tuple[Pass, ...]:
    """Return the passes in their order."""
    return (
        Pass("inline", inline, safe_for_quantized=True, safe_for_large=True),
        Pass(
            "opset",
            lambda model: upgrade(model, opset),
            safe_for_quantized=True,
            safe_for_large=True,
        ),
        Pass("constants", fold_constants, safe_for_large=True),
        Pass("simplify", simplify),
        Pass("batchnorm", fold_batchnorm, safe_for_large=True),
        Pass("shapes", infer_shapes, safe_for_quantized=True, safe_for_large=True),
        Pass("names", name_all, safe_for_quantized=True, safe_for_large=True),
    )


def prepare(model: ir.Model, opset: int, skip: Sequence[str], outputs: Outputs) -> Prepared:
    """Return the model after every pass that keeps its outputs; `outputs` runs a model."""
    ordered = passes(opset)
    require_known(skip)
    quantized = is_quantized(model)
    large = onnx_io.weight_bytes(model) >= onnx_io.SINGLE_FILE_BYTES
    wanted = outputs(model)
    steps: list[Step] = []
    for each in ordered:
        started = time.perf_counter()
        dropped = _left_out(each, skip, quantized=quantized, large=large)
        changed = ""
        if not dropped:
            model, changed, dropped = _apply(each, model, wanted, outputs)
        steps.append(Step(each.name, changed, dropped, time.perf_counter() - started))
    return Prepared(model, tuple(steps), quantized)


def _apply(
    each: Pass, model: ir.Model, wanted: Feeds, outputs: Outputs
) -> tuple[ir.Model, str, str]:
    try:
        rewritten, changed = each.rewrite(model)
        apart = _apart(wanted, outputs(rewritten)) if rewritten is not model else ""
    except QConvertError as error:
        return model, "", f"its result does not run: {error}"
    except Exception as error:  # passes of libraries raise whatever they trip over
        return model, "", f"it failed: {reason(error)}"
    if apart:
        return model, "", apart
    return rewritten, changed, ""


def _apart(wanted: Feeds, got: Feeds) -> str:
    """Say how two runs differ, or nothing where they are the same network."""
    if list(wanted) != list(got):
        return f"it renamed the outputs to {', '.join(got)}"
    for name, array in wanted.items():
        other = got[name]
        if array.shape != other.shape or array.dtype != other.dtype:
            return (
                f"it turned `{name}` from {array.dtype}{array.shape} to {other.dtype}{other.shape}"
            )
        largest = float(np.abs(array.astype(np.float64)).max(initial=0.0))
        far = float(np.abs(array.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))
        if not far <= TOLERANCE * largest:
            return (
                f"it moved `{name}` by {far / largest if largest else far:.1e} of its largest value"
            )
    return ""


def _left_out(each: Pass, skip: Sequence[str], *, quantized: bool, large: bool) -> str:
    if each.name in skip:
        return "skipped as asked"
    if quantized and not each.safe_for_quantized:
        return QUANTIZED
    if large and not each.safe_for_large:
        return LARGE
    return ""


def require_known(skip: Sequence[str]) -> None:
    """Refuse the name of a pass that does not exist."""
    names = [each.name for each in passes(opset=0)]
    for name in skip:
        if name not in names:
            raise UsageError(
                f"prepare.skip: there is no pass `{name}`{near(name, names)}",
                hint="the passes: " + ", ".join(names),
            )
