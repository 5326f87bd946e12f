"""A model in half precision, with what calibration saw of it keeping out of overflow."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from qconvert import __version__
from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import Calibration
from qconvert.core import onnx_io
from qconvert.core.cache import Cache, file_sha256
from qconvert.core.errors import QConvertError
from qconvert.core.progress import Progress, ProgressCallback, megabytes
from qconvert.core.tensors import Tensors, output_array, random_inputs
from qconvert.graph.fp16.convert import HalfModel, convert_to_half
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.graph.simplify import upgrade_opset
from qconvert.measure.output_error import sqnr_db
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import Candidate
from qconvert.optimize.efforts import EFFORTS
from qconvert.optimize.equalization import (
    Equalized,
    choose_equalization,
    propose_equalization,
)
from qconvert.optimize.learned_rounding import learn_rounding
from qconvert.optimize.plan_selection import TriedMethod, initial_options, select_plan
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import QuantizeOptions
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import PLAN_METADATA_KEY, plan_to_json
from qconvert.quantize.rounded_weights import RoundedWeights
from qconvert.quantize.scheme import Scheme
from qconvert.sources import MODEL_FILE, LoadedModel

# The first opset in which every operator of a network may be bfloat16.
BF16_OPSET = 22


def to_half_precision(
    model: ir.Model, kind: Literal["fp16", "bf16"], seen: Mapping[str, float], *, keep_io: bool
) -> HalfModel:
    """Return the model in half precision; for bfloat16 its opset is raised where it must be."""
    if kind == "bf16":
        try:
            model, _ = upgrade_opset(model, BF16_OPSET)
        except ValueError as error:
            raise QConvertError(
                f"bf16 needs opset {BF16_OPSET}, and {error}",
                hint="fp16 needs no newer opset: `--precision fp16`",
            ) from None
    return convert_to_half(
        model, kind, {**seen, **_max_before_quantization(model, seen)}, keep_io=keep_io
    )


def max_magnitudes(model: ir.Model, calibration: Calibration | None) -> dict[str, float]:
    """Return the largest magnitude of every tensor that was seen, empty without calibration."""
    if calibration is None:
        return {}
    found = {
        name: max(abs(seen.low), abs(seen.high)) for name, seen in calibration.summaries.items()
    }
    shares = find_observed_tensors(model).aliases.items()
    return found | {name: found[source] for name, source in shares if source in found}


def _max_before_quantization(model: ir.Model, seen: Mapping[str, float]) -> dict[str, float]:
    """Return for tensors that went through integers what was seen of them before."""
    found: dict[str, float] = {}
    for node in model.graph:
        integers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        there = integers.producer() if integers is not None else None
        before = there.inputs[0] if there is not None else None
        name = (before.name or "") if before is not None else ""
        if name in seen:
            found[node.outputs[0].name or ""] = seen[name]
    return found


ISLANDS_KEY = "qconvert.islands"


def with_metadata(model: ir.Model, plan: Plan | None, islands: Mapping[str, str]) -> ir.Model:
    """Return the model with its plan and its float32 islands written into its metadata."""
    model = model.clone()
    if plan is not None:
        model.metadata_props[PLAN_METADATA_KEY] = json.dumps(plan_to_json(plan), ensure_ascii=False)
    if islands:
        model.metadata_props[ISLANDS_KEY] = json.dumps(dict(islands), ensure_ascii=False)
    return model


def require_working(model: ir.Model, ready: LoadedModel) -> None:
    """Refuse a model that is not valid ONNX, does not run, or no longer answers with numbers."""
    onnx_io.require_valid(model)
    before = open_cpu(ready.model)(random_inputs(ready.source.inputs, 1, seed=0))
    after = open_cpu(model)(random_inputs(onnx_io.inputs(model), 1, seed=0))
    broken = [name for name in before if _is_finite(before, name) and not _is_finite(after, name)]
    if broken:
        raise QConvertError(
            f"the rewritten model answers `{broken[0]}` with infinite values or NaN",
            hint="it overflows: give `--images`, so that it is known where, or `--rest fp32`",
        )


def write_model(model: ir.Model, out: Path, before: int, tell: ProgressCallback) -> None:
    """Write the model and say how large it is, beside the `before` bytes of its float weights."""
    started = time.perf_counter()
    onnx_io.save(model, out)
    size = sum(file.stat().st_size for file in onnx_io.model_files(out))
    share = f", {size / before:.0%} of {megabytes(before)}" if before else ""
    text = f"{out}, {megabytes(size)}{share}, sha256 {file_sha256(out)[:12]}"
    tell(Progress("write", text, time.perf_counter() - started))


def _is_finite(answers: Tensors, name: str) -> bool:
    array = output_array(answers, name)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


BF16_NOT_RUN = "not run here: ONNX Runtime has no bf16 kernels for the CPU"
INTEGER_QDQ_HINT = (
    "to check it on ONNX Runtime's CPU provider set `session.disable_quant_qdq` = 1: it would make "
    "integers of the float biases, and answer wrongly"
)
UNRELATED_OUTPUTS = (
    "the answers have little to do with those of the float model: SQNR {:.0f} dB on {} images; "
    "try `--method auto`, or `--exclude` layers"
)
OVERFLOW_UNKNOWN = "without calibration nothing is known of overflow: add `--images`"

# Below, the error has half the power of the answers, and more.
MIN_SQNR_DB = 3.0


@dataclass(frozen=True)
class QuantizeSpec:
    """What a model is rewritten to: to INT8 by a `plan` or by a `scheme`, the rest as wished.

    `learned` are the weights that were learned with the plan given; weights of a new plan are
    learned with an `effort`.
    """

    name: str
    options: QuantizeOptions
    scheme: Scheme | None = None
    plan: Plan | None = None
    rounded_weights: RoundedWeights = field(default_factory=dict)
    effort: str = "none"
    keep_io: bool = True


@dataclass(frozen=True)
class QuantizedModel:
    """The model that was made, and how.

    `learned` are the weights that belong to the plan. `islands` are the nodes that half precision
    left in float32, each with its reason; `tried` has every range method where one was chosen.
    """

    model: ir.Model
    plan: Plan | None = None
    rounded_weights: RoundedWeights = field(default_factory=dict)
    islands: dict[str, str] = field(default_factory=dict)
    method_scores: tuple[TriedMethod, ...] = ()
    notes: tuple[str, ...] = ()


def convert_precision(
    ready: LoadedModel,
    found: CalibrationSet | None,
    how: QuantizeSpec,
    store: Cache,
    tell: ProgressCallback,
) -> QuantizedModel:
    """Return the model in the precisions that were asked for; it runs, and answers with numbers."""
    plan, learned, notes = how.plan, how.rounded_weights, list[str]()
    tried: tuple[TriedMethod, ...] = ()
    if plan is None and how.scheme is not None and found is not None:
        options = initial_options(how.options)
        max_images = EFFORTS[how.effort].holdout_images
        candidate = Candidate(ready, found, how.scheme, options, max_images, tell)
        equalized = _equalize(candidate, how.effort, store)
        selected = select_plan(candidate, equalized, how.options.method, how.effort)
        found, tried = selected.calibration, selected.tried
        better = learn_rounding(
            selected.plan, replace(candidate, calibration=found), how.effort, store
        )
        plan, learned, notes = better.plan, better.weights, [*selected.notes, *better.notes]
    started = time.perf_counter()
    rest = plan.rest if plan is not None else how.options.rest
    model = ready.model if plan is None else apply_plan(ready.model, plan, learned)
    islands: dict[str, str] = {}
    if rest != "fp32":
        known = max_magnitudes(ready.model, found.full if found is not None else None)
        done = to_half_precision(model, rest, known, keep_io=how.keep_io)
        model, islands = done.model, done.islands
        notes += [OVERFLOW_UNKNOWN] if rest == "fp16" and found is None else []
    model = with_metadata(model, plan, islands)
    if rest == "bf16":
        notes.append(BF16_NOT_RUN)
    else:
        require_working(model, ready)
    if plan is not None and not plan.integer_bias:
        notes.append(INTEGER_QDQ_HINT)
    notes += _warn_unrelated_outputs(ready, model, found) if rest != "bf16" else []
    result = QuantizedModel(model, plan, learned, islands, tried, tuple(notes))
    tell(
        Progress(
            "quantize", f"{how.name}: {_describe(result, rest)}", time.perf_counter() - started
        )
    )
    return result


def _equalize(candidate: Candidate, effort: str, cache: Cache) -> Equalized:
    """Equalize the model, calibrate it again, and return it if its output error is lower."""
    calibration = candidate.calibration
    if not EFFORTS[effort].equalize or not calibration.images_available:
        return Equalized(candidate)
    proposal = propose_equalization(candidate) if calibration.recalibrate is not None else None
    if proposal is None or calibration.recalibrate is None:
        return Equalized(candidate)
    source = candidate.loaded.source
    key = {
        "name": source.name,
        "model": onnx_io.fingerprint(candidate.loaded.model),
        "factors": json.dumps(proposal.factors),
        "qconvert": __version__,
    }
    entry = cache.get_or_make(
        "equalize", key, lambda folder: onnx_io.save(proposal.model, folder / MODEL_FILE)
    )
    path = entry.path / MODEL_FILE
    loaded = replace(candidate.loaded, model=onnx_io.load(path), path=path)
    equalized = replace(candidate, loaded=loaded, calibration=calibration.recalibrate(loaded))
    return choose_equalization(candidate, equalized, proposal)


def _warn_unrelated_outputs(
    ready: LoadedModel, model: ir.Model, found: CalibrationSet | None
) -> list[str]:
    """Say so where a model no longer answers like the one it was made from."""
    if found is None or not found.images_available:
        return []
    feeds = next(iter(found.validation_batches()))
    wanted, got = open_cpu(ready.model)(feeds), open_cpu(model)(feeds)
    db = sqnr_db(wanted, got)
    count = len(next(iter(feeds.values())))
    return [UNRELATED_OUTPUTS.format(db, count)] if db < MIN_SQNR_DB else []


def _describe(done: QuantizedModel, rest: str) -> str:
    parts = [] if done.plan is not None or rest != "fp32" else ["the float model"]
    if done.plan is not None:
        left = len(done.plan.layers) - done.plan.quantized
        parts.append(f"{done.plan.quantized} of {len(done.plan.layers)} nodes in int8")
        parts += [f"{left} left in float"] if left else []
    if rest != "fp32":
        whole = f"{len(done.model.graph)} nodes"
        parts.append(f"the rest in {rest}" if done.plan is not None else f"{whole} in {rest}")
        parts += [f"{len(done.islands)} of them stay in fp32"] if done.islands else []
    return ", ".join(parts)
