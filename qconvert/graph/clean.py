"""An ordered list of passes that clean a graph, each checked against the first outputs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError, did_you_mean, first_line
from qconvert.core.tensors import Tensors
from qconvert.graph.batchnorm import fold_batchnorm
from qconvert.graph.constants import fold_constants
from qconvert.graph.equivalence import (
    describe_difference,
    describe_signature_difference,
    max_relative_error,
    perturb_inputs,
)
from qconvert.graph.names import name_nodes, rename_duplicate_nodes
from qconvert.graph.patterns import is_quantized
from qconvert.graph.simplify import infer_shapes, inline_functions, run_onnxslim, upgrade_opset

Rewrite = Callable[[ir.Model], tuple[ir.Model, str]]
RunModel = Callable[[ir.Model], Tensors]

# Outputs may move by this share of their largest value, or by as many times what rounding moves
# them, but never by more than the last.
TOLERANCE, SLACK, MAX_TOLERANCE = 1e-4, 8.0, 1e-2

UNSAFE_FOR_QUANTIZED = "the model is quantized already; this would fold its scales into it"
NOT_REPEATABLE = "two runs of the model on the same inputs differ, so this pass cannot be checked"
TOO_LARGE = "the model is above 2 GB, which this pass cannot hold"


@dataclass(frozen=True)
class Pass:
    """One rewrite: its name, whether it may touch a quantized model or one above 2 GB.

    One that `computes` may move the outputs, and is only taken where they can be compared.
    """

    name: str
    rewrite: Rewrite
    safe_for_quantized: bool = False
    safe_for_large: bool = False
    computes: bool = True


@dataclass(frozen=True)
class PassResult:
    """What one pass did: what it changed, or why it was left out or taken back."""

    name: str
    changed: str
    dropped: str
    seconds: float


@dataclass(frozen=True)
class CleanedModel:
    """The cleaned model and what was done to it."""

    model: ir.Model
    steps: tuple[PassResult, ...]
    quantized: bool


@dataclass(frozen=True)
class _Reference:
    """What the model said before it was cleaned, and whether it says so every time."""

    run: RunModel
    expected: Tensors
    repeats: bool
    tolerance: float

    def differs(self, model: ir.Model) -> str:
        """Say how a rewritten model differs; of random outputs only names, types and shapes do."""
        got = self.run(model)
        return (
            describe_difference(self.expected, got, self.tolerance)
            if self.repeats
            else describe_signature_difference(self.expected, got)
        )


def list_passes(opset: int) -> tuple[Pass, ...]:
    """Return the passes in their order."""
    return (
        Pass(
            "inline", inline_functions, safe_for_quantized=True, safe_for_large=True, computes=False
        ),
        Pass(
            "opset",
            lambda model: upgrade_opset(model, opset),
            safe_for_quantized=True,
            safe_for_large=True,
        ),
        Pass("constants", fold_constants, safe_for_large=True),
        Pass("simplify", run_onnxslim),
        Pass("batchnorm", fold_batchnorm, safe_for_large=True),
        Pass("shapes", infer_shapes, safe_for_quantized=True, safe_for_large=True, computes=False),
        Pass("names", name_nodes, safe_for_quantized=True, safe_for_large=True, computes=False),
    )


def clean_model(
    model: ir.Model, opset: int, skip: Sequence[str], outputs: RunModel
) -> CleanedModel:
    """Return the model after every pass that keeps its outputs; `outputs` runs a model."""
    require_known_passes(skip)
    # ONNX Runtime refuses two nodes of one name, so that `names` would come too late for them.
    model, mended = rename_duplicate_nodes(model)
    reference = _run_reference(model, outputs)
    quantized = is_quantized(model)
    large = onnx_io.weight_bytes(model) >= onnx_io.SINGLE_FILE_BYTES
    steps: list[PassResult] = []
    for each in list_passes(opset):
        started = time.perf_counter()
        dropped = _reason_to_skip(each, skip, quantized=quantized, large=large)
        changed = ""
        if not dropped:
            model, changed, dropped = _apply_pass(each, model, reference)
        if each.name == "names" and mended:
            changed = f"{mended} told apart" + (f", {changed}" if changed else "")
        steps.append(PassResult(each.name, changed, dropped, time.perf_counter() - started))
    onnx_io.require_valid(model)
    return CleanedModel(model, tuple(steps), quantized)


def _run_reference(model: ir.Model, outputs: RunModel) -> _Reference:
    """Run the model twice: what draws random numbers does not say the same again."""
    wanted = outputs(model)
    repeats = not describe_difference(wanted, outputs(model), TOLERANCE)
    return _Reference(outputs, wanted, repeats, _tolerance(model, outputs, wanted))


def _tolerance(model: ir.Model, outputs: RunModel, wanted: Tensors) -> float:
    """Return how far outputs may move: some networks make much of the last bits of their inputs."""
    shaking = perturb_inputs(model)
    moved = max_relative_error(wanted, outputs(shaking)) if shaking is not None else 0.0
    return min(max(TOLERANCE, SLACK * moved), MAX_TOLERANCE)


def _apply_pass(each: Pass, model: ir.Model, reference: _Reference) -> tuple[ir.Model, str, str]:
    try:
        rewritten, changed = each.rewrite(model)
        if rewritten is model:
            return model, changed, ""
        if each.computes and not reference.repeats:
            return model, "", NOT_REPEATABLE
        _restore_inputs(rewritten, model)
        differs = reference.differs(rewritten)
    except QConvertError as error:
        return model, "", f"its result does not run: {error}"
    except Exception as error:  # passes of libraries raise whatever they trip over
        return model, "", f"it failed: {first_line(error)}"
    if differs:
        return model, "", differs + _opset_note(model, rewritten)
    return rewritten, changed, ""


def _opset_note(model: ir.Model, rewritten: ir.Model) -> str:
    """Say which opset a model keeps, and which operators had no place in the other."""
    opset, other = model.opset_imports.get("", 0), rewritten.opset_imports.get("", 0)
    if opset == other:
        return ""
    gone = {node.op_type for node in model.graph} - {node.op_type for node in rewritten.graph}
    shown = ", ".join(f"`{op}`" for op in sorted(gone)[:3])
    return f" by converting {shown or 'it'} to opset {other}; the model stays at opset {opset}"


def _restore_inputs(rewritten: ir.Model, model: ir.Model) -> None:
    """Put back the inputs that a pass dropped because nothing reads them: callers feed them."""
    kept = {value.name: value for value in rewritten.graph.inputs}
    if not {value.name for value in model.graph.inputs} - set(kept):
        return
    restored = [
        kept.get(value.name) or ir.Value(name=value.name, shape=value.shape, type=value.type)
        for value in model.graph.inputs
    ]
    rewritten.graph.inputs.clear()
    rewritten.graph.inputs.extend(restored)


def _reason_to_skip(each: Pass, skip: Sequence[str], *, quantized: bool, large: bool) -> str:
    if each.name in skip:
        return "skipped as asked"
    if quantized and not each.safe_for_quantized:
        return UNSAFE_FOR_QUANTIZED
    if large and not each.safe_for_large:
        return TOO_LARGE
    return ""


def require_known_passes(skip: Sequence[str]) -> None:
    """Refuse the name of a pass that does not exist."""
    names = [each.name for each in list_passes(opset=0)]
    for name in skip:
        if name not in names:
            raise UsageError(
                f"prepare.skip: there is no pass `{name}`{did_you_mean(name, names)}",
                hint="the passes: " + ", ".join(names),
            )
