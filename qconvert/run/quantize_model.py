"""Convert a model to a precision: plan -> apply -> half precision -> verify."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from qconvert import __version__
from qconvert.backends.base import BackendRequirements
from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import Calibration
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError
from qconvert.core.progress import start_step
from qconvert.core.scales import Grid
from qconvert.core.tensors import Tensors, batch_size, output_array, random_inputs
from qconvert.graph.fp16.convert import HalfModel, convert_to_half
from qconvert.graph.observed_tensors import find_observed_tensors
from qconvert.graph.passes import upgrade_opset
from qconvert.measure.output_error import sqnr_db
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import EFFORTS, Candidate
from qconvert.optimize.equalization import choose_equalization, propose_factors
from qconvert.optimize.learned_rounding import learn_rounding
from qconvert.optimize.plan_selection import TriedMethod, initial_options, select_plan
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.placement import (
    QuantizeOptions,
    Selection,
    place_quantizers,
    require_float_model,
)
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.quantize.plan_files import PLAN_METADATA_KEY, plan_to_json
from qconvert.quantize.rounded_weights import RoundedWeights
from qconvert.quantize.scheme import Scheme
from qconvert.run.calibrate import measure_calibration_set
from qconvert.run.context import JobContext
from qconvert.sources import MODEL_FILE, LoadedModel

# The first opset in which every operator of a network takes bfloat16.
BF16_OPSET = 22
ISLANDS_KEY = "qconvert.islands"
# Below, the error has more than half the power of the outputs.
MIN_SQNR_DB = 3.0

BF16_NOT_RUN = "not run here: ONNX Runtime has no bf16 kernels for the CPU"
INTEGER_QDQ_HINT = (
    "to check it on ONNX Runtime's CPU provider set `session.disable_quant_qdq` = 1: otherwise it "
    "makes integers of the float biases, and the outputs are wrong"
)
UNRELATED_OUTPUTS = (
    "the outputs have little to do with those of the float model: SQNR {:.0f} dB on {} images; "
    "try `--method auto`, or `--exclude` layers"
)
OVERFLOW_UNKNOWN = "without calibration images overflow cannot be predicted: add `--images`"


@dataclass(frozen=True)
class QuantizeSpec:
    """What to convert a model to: to INT8 by a `plan` or by a `scheme`, the rest by the options.

    `rounded_weights` belong to the plan; for a new plan they are learned with an `effort`. As many
    `workers` calibrate.
    """

    name: str
    options: QuantizeOptions
    scheme: Scheme | None = None
    plan: Plan | None = None
    rounded_weights: RoundedWeights = field(default_factory=dict)
    effort: str = "none"
    keep_io: bool = True
    workers: int = 1


@dataclass(frozen=True)
class QuantizedModel:
    """A converted model.

    `rounded_weights` belong to the plan. `islands` are the nodes that half precision left in
    float32, each with its reason; `method_scores` has every range method that was tried.
    """

    model: ir.Model
    plan: Plan | None = None
    rounded_weights: RoundedWeights = field(default_factory=dict)
    islands: dict[str, str] = field(default_factory=dict)
    method_scores: tuple[TriedMethod, ...] = ()
    notes: tuple[str, ...] = ()


def quantize_options(settings: QuantizeConfig) -> QuantizeOptions:
    """Return what the settings decide about a plan."""
    selection = Selection(settings.exclude, settings.only, settings.keep)
    method = settings.method or EFFORTS[settings.effort].method
    return QuantizeOptions(method, {}, settings.weight_scales, settings.rest or "fp32", selection)


def scheme_for(settings: QuantizeConfig, requirements: BackendRequirements) -> Scheme:
    """Return the scheme of a backend, with the weight bits of the settings."""
    assert requirements.scheme is not None
    return replace(requirements.scheme, weights=Grid(settings.weight_bits))


def place_layers(
    model: ir.Model, settings: QuantizeConfig, requirements: BackendRequirements
) -> dict[str, LayerPlan]:
    """Return how the scheme of a backend would quantize each node; this needs no image."""
    require_float_model(model)
    scheme, selection = scheme_for(settings, requirements), quantize_options(settings).selection
    return place_quantizers(model, scheme, find_observed_tensors(model), selection)


def convert_precision(
    loaded: LoadedModel,
    calibration: CalibrationSet | None,
    spec: QuantizeSpec,
    context: JobContext,
) -> QuantizedModel:
    """Return the model in the precisions of the spec, and verify that it works."""
    result = QuantizedModel(loaded.model, spec.plan, spec.rounded_weights)
    if spec.plan is None and spec.scheme is not None and calibration is not None:
        result, calibration = _plan(loaded, calibration, spec, spec.scheme, context)
    end = start_step(context.progress, "quantize")
    plan, notes = result.plan, list(result.notes)
    rest = plan.rest if plan is not None else spec.options.rest
    model, islands = loaded.model, dict[str, str]()
    if plan is not None:
        model = apply_plan(model, plan, result.rounded_weights)
    if rest != "fp32":
        full = calibration.full if calibration is not None else None
        magnitudes = max_magnitudes(loaded.model, full)
        half = to_half_precision(model, rest, magnitudes, keep_io=spec.keep_io)
        model, islands = half.model, half.islands
        notes += [OVERFLOW_UNKNOWN] if rest == "fp16" and calibration is None else []
    model = _with_metadata(model, plan, islands)
    if rest == "bf16":
        notes.append(BF16_NOT_RUN)
    else:
        _require_working(model, loaded)
    if plan is not None and not plan.integer_bias:
        notes.append(INTEGER_QDQ_HINT)
    if rest != "bf16" and calibration is not None and calibration.images is not None:
        notes += _warn_unrelated_outputs(loaded, model, calibration)
    result = replace(result, model=model, islands=islands, notes=tuple(notes))
    end(f"{spec.name}: {_describe(result, rest)}", False)
    return result


def to_half_precision(
    model: ir.Model,
    kind: Literal["fp16", "bf16"],
    magnitudes: Mapping[str, float],
    *,
    keep_io: bool,
) -> HalfModel:
    """Return the model in half precision; bfloat16 needs a recent opset."""
    if kind == "bf16":
        try:
            model, _ = upgrade_opset(model, BF16_OPSET)
        except ValueError as error:
            raise QConvertError(
                f"bf16 needs opset {BF16_OPSET}, and {error}",
                hint="fp16 needs no newer opset: `--precision fp16`",
            ) from None
    magnitudes = {**magnitudes, **_dequantized_magnitudes(model, magnitudes)}
    return convert_to_half(model, kind, magnitudes, keep_io=keep_io)


def max_magnitudes(model: ir.Model, calibration: Calibration | None) -> dict[str, float]:
    """Return the largest magnitude of every calibrated tensor; empty without calibration."""
    if calibration is None:
        return {}
    magnitudes = {
        name: max(abs(summary.low), abs(summary.high))
        for name, summary in calibration.summaries.items()
    }
    aliases = find_observed_tensors(model).aliases.items()
    return magnitudes | {
        name: magnitudes[source] for name, source in aliases if source in magnitudes
    }


def _plan(
    loaded: LoadedModel,
    calibration: CalibrationSet,
    spec: QuantizeSpec,
    scheme: Scheme,
    context: JobContext,
) -> tuple[QuantizedModel, CalibrationSet]:
    """Select a plan and learn its rounding; return both, and the calibration that the plan fits."""
    options, holdout = initial_options(spec.options), EFFORTS[spec.effort].holdout_images
    original = Candidate(loaded, calibration, scheme, options, holdout, context.progress)
    candidate = _equalize(original, spec, context)
    plan, tried = select_plan(original, candidate, spec.options.method, spec.effort)
    original = replace(original, calibration=candidate.calibration)
    learned = learn_rounding(plan, original, spec.effort, context.cache)
    result = QuantizedModel(
        loaded.model,
        learned.plan,
        learned.weights,
        method_scores=tried,
        notes=(*candidate.notes, *learned.notes),
    )
    return result, candidate.calibration


def _equalize(candidate: Candidate, spec: QuantizeSpec, context: JobContext) -> Candidate:
    """Equalize the model, calibrate it again, and return it if its output error is lower."""
    equalizes = EFFORTS[spec.effort].equalize and candidate.calibration.can_recalibrate
    factors = propose_factors(candidate) if equalizes else {}
    if not factors:
        return candidate
    model = equalize(candidate.loaded.model, factors)
    key = {
        "name": candidate.loaded.source.name,
        "model": onnx_io.fingerprint(candidate.loaded.model),
        "factors": json.dumps(factors),
        "qconvert": __version__,
    }
    entry = context.cache.get_or_make(
        "equalize", key, lambda folder: onnx_io.save(model, folder / MODEL_FILE)
    )
    path = entry.path / MODEL_FILE
    loaded = replace(candidate.loaded, model=onnx_io.load(path), path=path)
    calibration = measure_calibration_set(loaded, context, spec.workers)
    equalized = replace(candidate, loaded=loaded, calibration=calibration, factors=factors)
    return choose_equalization(candidate, equalized)


def _dequantized_magnitudes(model: ir.Model, magnitudes: Mapping[str, float]) -> dict[str, float]:
    """Return the magnitudes of dequantized tensors: those of the tensors before quantization."""
    result: dict[str, float] = {}
    for node in model.graph:
        integers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        quantizer = integers.producer() if integers is not None else None
        source = quantizer.inputs[0] if quantizer is not None else None
        name = (source.name or "") if source is not None else ""
        if name in magnitudes:
            result[node.outputs[0].name or ""] = magnitudes[name]
    return result


def _with_metadata(model: ir.Model, plan: Plan | None, islands: Mapping[str, str]) -> ir.Model:
    """Return the model with its plan and its float32 islands in its metadata."""
    model = model.clone()
    if plan is not None:
        model.metadata_props[PLAN_METADATA_KEY] = json.dumps(plan_to_json(plan), ensure_ascii=False)
    if islands:
        model.metadata_props[ISLANDS_KEY] = json.dumps(dict(islands), ensure_ascii=False)
    return model


def _require_working(model: ir.Model, loaded: LoadedModel) -> None:
    """Raise unless the model is valid ONNX, runs, and its outputs are as finite as before."""
    onnx_io.require_valid(model)
    before = open_cpu(loaded.model)(random_inputs(loaded.source.inputs, 1, seed=0))
    after = open_cpu(model)(random_inputs(onnx_io.inputs(model), 1, seed=0))
    broken = [name for name in before if _is_finite(before, name) and not _is_finite(after, name)]
    if broken:
        raise QConvertError(
            f"the output `{broken[0]}` of the rewritten model is infinite or NaN",
            hint="it overflows: give `--images` to find out where, or `--rest fp32`",
        )


def _is_finite(outputs: Tensors, name: str) -> bool:
    array = output_array(outputs, name)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _warn_unrelated_outputs(
    loaded: LoadedModel, model: ir.Model, calibration: CalibrationSet
) -> list[str]:
    feeds = next(iter(calibration.validation_batches()))
    db = sqnr_db(open_cpu(loaded.model)(feeds), open_cpu(model)(feeds))
    return [UNRELATED_OUTPUTS.format(db, batch_size(feeds))] if db < MIN_SQNR_DB else []


def _describe(result: QuantizedModel, rest: str) -> str:
    parts = [] if result.plan is not None or rest != "fp32" else ["the float model"]
    if result.plan is not None:
        total, quantized = len(result.plan.layers), result.plan.quantized
        parts.append(f"{quantized} of {total} nodes in int8")
        parts += [f"{total - quantized} left in float"] if total > quantized else []
    if rest != "fp32":
        nodes = "the rest" if result.plan is not None else f"{len(result.model.graph)} nodes"
        parts.append(f"{nodes} in {rest}")
        parts += [f"{len(result.islands)} of them stay in fp32"] if result.islands else []
    return ", ".join(parts)
