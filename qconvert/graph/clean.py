"""Clean a graph by an ordered list of passes, each checked against the outputs of the original."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError, did_you_mean, first_line
from qconvert.core.tensors import Tensors
from qconvert.graph import passes, patterns
from qconvert.graph.activations import fuse_activations

RunModel = Callable[[ir.Model], Tensors]

# Outputs may change by this share of their largest value, or by SLACK times what float32 noise
# changes them, but never by more than MAX_TOLERANCE.
TOLERANCE, SLACK, MAX_TOLERANCE = 1e-4, 8.0, 1e-2
# Values are compared as doubles, this many at a time: an output may be a third of the memory.
BLOCK_SIZE = 1 << 20

UNSAFE_FOR_QUANTIZED = "the model is already quantized; this pass would fold its scales into it"
NOT_REPEATABLE = "two runs of the model on the same inputs differ, so this pass cannot be checked"
TOO_LARGE = "the model is above 2 GB, more than this pass can hold"


@dataclass(frozen=True)
class Pass:
    """A rewrite, and whether it is safe for a quantized model and for one above 2 GB.

    One that `computes` may change the outputs, and is kept only if they can be compared.
    """

    name: str
    rewrite: Callable[[ir.Model], tuple[ir.Model, str]]
    safe_for_quantized: bool = False
    safe_for_large: bool = False
    computes: bool = True


@dataclass(frozen=True)
class PassResult:
    """What a pass changed, or why it was skipped or undone."""

    name: str
    changed: str
    dropped: str
    seconds: float


@dataclass(frozen=True)
class CleanedModel:
    """The cleaned model and the result of each pass."""

    model: ir.Model
    steps: tuple[PassResult, ...]


def list_passes(opset: int) -> tuple[Pass, ...]:
    """Return the passes in their order."""
    both = {"safe_for_quantized": True, "safe_for_large": True}
    return (
        Pass("inline", passes.inline_functions, **both, computes=False),
        Pass("opset", lambda model: passes.upgrade_opset(model, opset), **both),
        Pass("constants", passes.fold_constants, **both),
        Pass("simplify", passes.run_onnxslim),
        Pass("activations", fuse_activations, **both),
        Pass("batchnorm", passes.fold_batchnorm, safe_for_large=True),
        Pass("shapes", passes.infer_shapes, **both, computes=False),
        Pass("names", passes.name_nodes, **both, computes=False),
    )


def require_known_passes(skip: Sequence[str]) -> None:
    """Refuse the name of a pass that does not exist."""
    names = [step.name for step in list_passes(opset=0)]
    for name in skip:
        if name not in names:
            raise UsageError(
                f"prepare.skip: there is no pass `{name}`{did_you_mean(name, names)}",
                hint="the passes: " + ", ".join(names),
            )


def clean_model(model: ir.Model, opset: int, skip: Sequence[str], run: RunModel) -> CleanedModel:
    """Return the model after every pass that preserves its outputs; `run` computes those."""
    require_known_passes(skip)
    # ONNX Runtime refuses two nodes of one name, so the `names` pass would come too late for them.
    model, renamed = passes.rename_duplicate_nodes(model)
    reference = _Reference(model, run)
    quantized = patterns.is_quantized(model)
    large = onnx_io.weight_bytes(model) >= onnx_io.SINGLE_FILE_BYTES
    steps: list[PassResult] = []
    for step in list_passes(opset):
        started = time.perf_counter()
        changed, dropped = "", ""
        if step.name in skip:
            dropped = "skipped on request"
        elif quantized and not step.safe_for_quantized:
            dropped = UNSAFE_FOR_QUANTIZED
        elif large and not step.safe_for_large:
            dropped = TOO_LARGE
        else:
            model, changed, dropped = _apply_pass(step, model, reference)
        if step.name == "names" and renamed:
            changed = f"{renamed} duplicates renamed" + (f", {changed}" if changed else "")
        steps.append(PassResult(step.name, changed, dropped, time.perf_counter() - started))
    onnx_io.require_valid(model)
    return CleanedModel(model, tuple(steps))


class _Reference:
    """The outputs of the original model, and how much another may differ from it.

    It runs twice, to notice random outputs, and once with perturbed inputs, which shows how much
    the outputs depend on the last bits of float32.
    """

    def __init__(self, model: ir.Model, run: RunModel) -> None:
        self.run, self.expected = run, run(model)
        self.repeats = not describe_difference(self.expected, run(model), TOLERANCE)
        noise = 0.0
        if (perturbed := perturb_inputs(model)) is not None:
            difference, error = _compare(self.expected, run(perturbed), np.inf)
            noise = np.inf if difference else error
        self.tolerance = min(max(TOLERANCE, SLACK * noise), MAX_TOLERANCE)

    def difference(self, model: ir.Model) -> str:
        """Describe how a rewritten model differs; only by names, types and shapes if outputs vary."""
        outputs = self.run(model)
        if not self.repeats:
            return _describe_signature_difference(self.expected, outputs)
        return describe_difference(self.expected, outputs, self.tolerance)


def _apply_pass(step: Pass, model: ir.Model, reference: _Reference) -> tuple[ir.Model, str, str]:
    """Return the model with or without the pass, what it changed, and why it was undone."""
    try:
        rewritten, changed = step.rewrite(model)
        if rewritten is model:
            return model, changed, ""
        if step.computes and not reference.repeats:
            return model, "", NOT_REPEATABLE
        # Put back the inputs that the pass dropped as unused: callers still feed them.
        present = {value.name: value for value in rewritten.graph.inputs}
        if not {value.name for value in model.graph.inputs} <= present.keys():
            rewritten.graph.inputs[:] = [
                present.get(value.name)
                or ir.Value(name=value.name, shape=value.shape, type=value.type)
                for value in model.graph.inputs
            ]
        difference = reference.difference(rewritten)
    except QConvertError as error:
        return model, "", f"its result does not run: {error}"
    except Exception as error:  # library passes raise exceptions of any type
        return model, "", f"it failed: {first_line(error)}"
    if not difference:
        return rewritten, changed, ""
    opset, other = model.opset_imports.get("", 0), rewritten.opset_imports.get("", 0)
    if opset != other:
        replaced = {node.op_type for node in model.graph}
        replaced -= {node.op_type for node in rewritten.graph}
        operators = ", ".join(f"`{op}`" for op in sorted(replaced)[:3]) or "it"
        difference += (
            f" by converting {operators} to opset {other}; the model stays at opset {opset}"
        )
    return model, "", difference


def describe_difference(expected: Tensors, actual: Tensors, tolerance: float) -> str:
    """Describe how two runs differ; empty where they are of the same network.

    Numbers may move by `tolerance` of the largest finite one in their tensor. NaN, infinities and
    strings must stay as they are; a sequence is compared tensor by tensor.
    """
    return _compare(expected, actual, tolerance)[0]


def _compare(expected: Tensors, actual: Tensors, tolerance: float) -> tuple[str, float]:
    """Return the first difference beyond the tolerance, and the largest relative error so far."""
    worst = 0.0
    if difference := _describe_signature_difference(expected, actual):
        return difference, worst
    for name, output in expected.items():
        for before, after in zip(_arrays(output), _arrays(actual[name]), strict=True):
            if before.dtype.kind not in "biufcV":
                if not np.array_equal(before, after):
                    return f"it changed `{name}`", worst
                continue
            error = largest = 0.0
            # Wide enough to subtract: integers do not wrap around.
            wide = np.complex128 if before.dtype.kind == "c" else np.float64
            for start in range(0, before.size, BLOCK_SIZE):
                block, other = (
                    array.reshape(-1)[start : start + BLOCK_SIZE].astype(wide)
                    for array in (before, after)
                )
                finite = np.isfinite(block)
                if not np.array_equal(block[~finite], other[~finite], equal_nan=True):
                    return f"it moved the infinite values or NaN of `{name}`", worst
                if not np.isfinite(other[finite]).all():
                    return f"it made values of `{name}` infinite or NaN", worst
                error = max(error, float(np.abs(block[finite] - other[finite]).max(initial=0.0)))
                largest = max(largest, float(np.abs(block[finite]).max(initial=0.0)))
            relative = error / largest if largest else error
            if error > tolerance * largest:
                return f"it moved `{name}` by {relative:.1e} of its largest value", worst
            worst = max(worst, relative if largest or not error else np.inf)
    return "", worst


def _describe_signature_difference(expected: Tensors, actual: Tensors) -> str:
    """Describe how the outputs differ in name, type or shape; empty where they do not."""
    if list(expected) != list(actual):
        return f"it renamed the outputs to {', '.join(actual)}"
    for name, output in expected.items():
        before, after = _signature(output), _signature(actual[name])
        if before != after:
            return f"it turned `{name}` from {before} to {after}"
    return ""


def _signature(output: object) -> str:
    if isinstance(output, list | dict):
        inner = ", ".join(map(_signature, _arrays(output)))
        return f"a sequence of {len(output)} ({inner})"
    array = np.asarray(output)
    return "nothing" if output is None else f"{array.dtype}{array.shape}"


def _arrays(output: object) -> list[NDArray[Any]]:
    """Return the tensors of an output: itself, or those of its sequence or map."""
    if isinstance(output, dict):
        output = [*output.keys(), *output.values()]
    if isinstance(output, list):
        return [array for item in output for array in _arrays(item)]
    return [np.asarray(output)]


def perturb_inputs(model: ir.Model) -> ir.Model | None:
    """Return a copy that scales its inputs by 1 + 2^-21, or None where none is float32.

    That is about four units in the last place. The outputs differ as those of the same network do
    when it is computed in another order: the noise of float32, for which no pass is to blame.
    """
    perturbed = model.clone()
    graph, names = perturbed.graph, patterns.UniqueNames(patterns.tensor_names(model.graph))
    inputs = [value for value in graph.inputs if value.dtype is ir.DataType.FLOAT and value.uses()]
    if not inputs or not len(graph):
        return None
    number = np.array(1 + 2**-21, np.float32)
    factor = patterns.add_constant(graph, names.reserve("qconvert.perturbation"), number)
    for value in inputs:
        uses, name = value.uses(), names.reserve(f"{value.name}.perturbed")
        scaling = patterns.make_node("Mul", [value, factor], name, value.dtype)
        for node, slot in uses:
            node.replace_input_with(slot, scaling.outputs[0])
        graph.insert_before(graph[0], scaling)
    return perturbed
