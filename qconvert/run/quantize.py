"""The job `quantize`: from a model and its calibration to one ONNX file in another precision."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert import backends, sources
from qconvert.backends.base import FLOAT, EngineVariant, scheme_for
from qconvert.backends.ort import open_cpu
from qconvert.calibrate.calibration import Calibration
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.formats import FORMATS
from qconvert.core.progress import megabytes, start_step
from qconvert.core.tensors import Tensors, batch_size, output_array, random_inputs
from qconvert.graph.fp16.convert import HalfModel, HalfPrecision, convert_to_half
from qconvert.graph.passes import upgrade_opset
from qconvert.graph.patterns import find_quantizer, is_quantized
from qconvert.graph.taps import find_observed_tensors
from qconvert.measure.output_error import sqnr_db
from qconvert.measure.training_curve import TrainingCurve
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import EFFORTS, Candidate
from qconvert.optimize.equalization import choose_equalization, choose_factors
from qconvert.optimize.learned_rounding import learn_rounding
from qconvert.optimize.plan_selection import initial_options, select_plan
from qconvert.optimize.sensitive_blocks import keep_sensitive_blocks
from qconvert.optimize.shifted_grids import EFFORTS_WITH_SHIFTS, shift_grids
from qconvert.optimize.weight_bits import keep_sensitive_weights
from qconvert.optimize.weight_rounding import round_on_images
from qconvert.quantize import placement, plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.low_bits import describe_low_bits
from qconvert.quantize.plan import LayerPlan, Plan, RestPrecision, RoundedWeights
from qconvert.quantize.saturation import PairSums, describe_saturation, find_saturation
from qconvert.quantize.weight_only import require_groups
from qconvert.quantize.weight_only_graph import prepare_opset
from qconvert.run.calibrate import load_calibration_set, measure_calibration_set
from qconvert.run.context import JobContext, with_preprocessing
from qconvert.run.quantize_request import (
    QuantizeRequest,
    require_float_source,
    require_matching_plan,
    require_supported,
)
from qconvert.run.quantized_source import FloatModel, load_float, plan_of_training
from qconvert.run.run_folder import require_output_file
from qconvert.run.training import BEFORE_TRAINING, TRAIN, require_trainable, train
from qconvert.sources import LoadedModel

# The first opset in which every operator of a network supports bfloat16.
BF16_OPSET = 22
# Below this, the error has more than half the power of the outputs.
MIN_SQNR_DB = 3.0


@dataclass(frozen=True)
class QuantizeSpec:
    """What to convert a model to: integers by the `saved` plan or a new one, beside them `rest`.

    `notes` say where a saved plan comes from.
    """

    variant: EngineVariant
    rest: RestPrecision
    saved: plan_files.PlanWithWeights | None = None
    keep_io: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizedModel:
    """A converted model, its plan, and `islands`: what stayed in float32, each with its reason.

    `training` is the course of the training, if its weights were trained.
    """

    model: ir.Model
    plan: Plan | None = None
    rounded_weights: RoundedWeights = field(default_factory=dict)
    islands: dict[str, str] = field(default_factory=dict)
    method_errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    training: TrainingCurve | None = None


@dataclass(frozen=True)
class Quantized:
    """A converted model, its original, and notes to read before running it."""

    loaded: LoadedModel
    quantized: QuantizedModel
    notes: tuple[str, ...]


def quantize(context: JobContext, request: QuantizeRequest) -> Quantized:
    """Convert the model of the settings for a backend, and write it."""
    config, out = context.config, request.out
    require_supported(context, request)
    require_output_file(out)
    variant = EngineVariant(request.backend, request.precision)
    source = load_float(context, quantizing=variant.is_quantized)
    loaded, requirements = source.loaded, backends.requirements(request.backend)
    spec = _make_spec(source, request, context)
    calibration = None
    if request.calibration is not None:
        calibration = load_calibration_set(loaded, context, request.calibration)
    elif config.calibration.images is not None and request.plan is None:
        calibration = measure_calibration_set(loaded, context)
    calibrated = calibration.full.origin.preprocessing if calibration is not None else {}
    loaded = with_preprocessing(loaded, config.preprocess, calibrated)
    result = convert_precision(loaded, calibration, spec, context)

    end = start_step(context.progress, "write")
    onnx_io.save(result.model, out)
    size, before = onnx_io.saved_bytes(out), onnx_io.weight_bytes(loaded.model)
    share = f", {size / before:.0%} of {megabytes(before)}" if before else ""
    end(f"{out}, {megabytes(size)}{share}, sha256 {file_sha256(out)[:12]}", False)
    notes = list(requirements.notes) if result.plan is not None else []
    if result.plan is not None and multiplies_bytes(result.plan):
        notes.append(describe_saturation(find_saturation(result.model)))
    return Quantized(loaded, result, (*notes, *result.notes))


def _make_spec(source: FloatModel, request: QuantizeRequest, context: JobContext) -> QuantizeSpec:
    """Return what to convert to; raise without ranges that it needs, or with nothing to quantize."""
    config = context.config
    settings, variant = config.quantize, EngineVariant(request.backend, request.precision)
    rest = FLOAT.get(request.precision) or settings.rest or "fp32"
    spec = QuantizeSpec(variant, rest, keep_io=request.keep_io)
    if request.plan is not None:
        saved = plan_files.load_plan(request.plan)
        require_matching_plan(saved.plan, settings, request)
        return replace(spec, rest=saved.plan.rest, saved=saved)
    if not variant.is_quantized:
        return spec
    require_float_source(source, [variant])
    if source.trained is not None:
        trained = plan_of_training(source.trained, request.backend, rest, settings)
        return replace(spec, saved=trained.saved, notes=trained.notes)
    if variant.needs_ranges and not (config.calibration.images or request.calibration):
        raise UsageError(
            "INT8 needs the value range of every tensor",
            hint="measure them on images: `--images PATH`, or give `--calibration FILE`",
        )
    require_quantizable(source.loaded.model, settings, variant)
    if variant.needs_ranges:
        require_trainable(source.loaded, context)
    return spec


def require_quantizable(model: ir.Model, settings: QuantizeConfig, variant: EngineVariant) -> None:
    """Refuse a model of which a variant can quantize nothing, before any work."""
    layers = place_layers(model, settings, variant)
    if FORMATS[variant.format].weights_only:
        requirements = backends.requirements(variant.backend)
        require_groups(layers, scheme_for(settings, requirements, variant.format).group)
        prepare_opset(model)
    placement.require_quantizable(layers)


def preview_layers(context: JobContext, request: QuantizeRequest) -> dict[str, LayerPlan]:
    """Return how the scheme of a backend would quantize each node, without any image."""
    require_supported(context, request)
    variant = EngineVariant(request.backend, request.precision)
    if not variant.is_quantized:
        raise UsageError(
            f"{request.precision} converts every node, so there is no plan",
            hint="show a plan with `--precision int8`",
        )
    source, settings = load_float(context, quantizing=True), context.config.quantize
    require_float_source(source, [variant])
    if source.trained is not None:
        return plan_of_training(source.trained, request.backend, "fp32", settings).saved.plan.layers
    return place_layers(source.loaded.model, settings, variant)


@dataclass(frozen=True)
class Inspection:
    """The layers of a model; of a quantized one the sums of its integer kernels, and notes."""

    layers: dict[str, LayerPlan]
    sums: tuple[PairSums, ...] | None = None
    notes: tuple[str, ...] = ()


def inspect_layers(context: JobContext, backend: str) -> Inspection:
    """Return what is quantized of a model, by its plan or its graph, or else what would be."""
    config = context.config
    model = sources.load(str(config.model), config.export, trust=context.trust).model
    plan = plan_files.read_embedded_plan(model)
    if plan is not None or is_quantized(model):
        layers = plan.layers if plan is not None else plan_files.read_layers(model)
        # ONNX Runtime's CPU provider computes other plans in float.
        is_integer = plan is None or multiplies_bytes(plan)
        notes = describe_low_bits(model, plan) if plan is not None else ()
        return Inspection(layers, find_saturation(model) if is_integer else None, notes)
    return Inspection(preview_layers(context, QuantizeRequest(Path("model.onnx"), backend, "int8")))


def multiplies_bytes(plan: Plan) -> bool:
    """Whether ONNX Runtime's CPU provider multiplies bytes by bytes in the graph of a plan.

    It computes Q/DQ nodes without integer biases in float.
    """
    return plan.integer_bias or FORMATS[plan.precision].activations == "at run time"


def place_layers(
    model: ir.Model, settings: QuantizeConfig, variant: EngineVariant
) -> dict[str, LayerPlan]:
    """Return how the scheme of a variant would quantize each node; this needs no image."""
    placement.require_float_model(model)
    requirements = backends.requirements(variant.backend)
    scheme = scheme_for(settings, requirements, variant.format)
    observed = find_observed_tensors(model)
    selection = placement.Selection(settings.exclude, settings.only, settings.keep)
    return placement.place_quantizers(model, scheme, observed, selection)


def convert_precision(
    loaded: LoadedModel, calibration: CalibrationSet | None, spec: QuantizeSpec, context: JobContext
) -> QuantizedModel:
    """Convert a model, for every job: plan -> apply -> half precision -> verify."""
    result, rest = QuantizedModel(loaded.model), spec.rest
    if spec.variant.is_quantized and spec.saved is not None:
        saved_plan = replace(spec.saved.plan, rest=rest)
        weights = spec.saved.weights
        result = QuantizedModel(loaded.model, saved_plan, weights, notes=spec.notes)
    elif spec.variant.needs_ranges:
        assert calibration is not None
        result, calibration = _make_plan(loaded, calibration, spec, context)
    elif spec.variant.is_quantized:
        result = _make_plan_without_ranges(loaded, calibration, spec, context)
    end = start_step(context.progress, "quantize")
    plan, notes = result.plan, list(result.notes)
    model, islands = loaded.model, dict[str, str]()
    if plan is not None:
        model = apply_plan(model, plan, result.rounded_weights)
    if rest != "fp32":
        magnitudes = max_magnitudes(loaded.model, calibration.full) if calibration else {}
        half = _convert_rest(model, rest, magnitudes, spec.keep_io)
        model, islands = half.model, half.islands
        if rest == "fp16" and calibration is None:
            notes.append("without calibration images overflow cannot be predicted: add `--images`")
    model = model.clone()
    if plan is not None:
        text = json.dumps(plan_files.plan_to_json(plan), ensure_ascii=False)
        model.metadata_props[plan_files.PLAN_METADATA_KEY] = text
    if islands:
        model.metadata_props["qconvert.islands"] = json.dumps(islands, ensure_ascii=False)
    if rest == "bf16":
        notes.append("not run here: ONNX Runtime has no bf16 kernels for the CPU")
    else:
        db = _require_working(model, loaded)
        has_images = calibration is not None or context.config.evaluate.images is not None
        if plan is not None and not (has_images or spec.variant.needs_ranges):
            notes.append(
                f"SQNR {db:.1f} dB of the outputs on a random input, which says less than images: "
                "compare on some, `--eval PATH`"
            )
    notes += describe_low_bits(model, plan) if plan is not None else ()
    if plan is not None and FORMATS[plan.precision].needs_ranges and not plan.integer_bias:
        notes.append(
            "to check it on ONNX Runtime's CPU provider set `session.disable_quant_qdq` = 1: "
            "otherwise it quantizes the float biases, and the outputs are wrong"
        )
    if rest != "bf16" and calibration is not None and calibration.images is not None:
        feeds = next(iter(calibration.validation_batches()))
        db = sqnr_db(open_cpu(loaded.model)(feeds), open_cpu(model)(feeds))
        if db < MIN_SQNR_DB:
            notes.append(
                f"the outputs differ strongly from those of the float model: SQNR {db:.0f} dB on "
                f"{batch_size(feeds)} images; try `--method auto`, or `--exclude` layers"
            )
    result = replace(result, model=model, islands=islands, notes=tuple(notes))
    end(f"{spec.variant.name}: {_describe(result, rest)}", False)
    return result


def max_magnitudes(model: ir.Model, calibration: Calibration) -> dict[str, float]:
    """Return the largest magnitude of every calibrated tensor."""
    summaries = calibration.summaries.items()
    magnitudes = {name: max(abs(row.low), abs(row.high)) for name, row in summaries}
    aliases = find_observed_tensors(model).aliases.items()
    return magnitudes | {
        name: magnitudes[source] for name, source in aliases if source in magnitudes
    }


def _make_plan(
    loaded: LoadedModel, calibration: CalibrationSet, spec: QuantizeSpec, context: JobContext
) -> tuple[QuantizedModel, CalibrationSet]:
    """Select a plan and learn its weights; return both, and the calibration that the plan fits."""
    settings = context.config.quantize
    name = BEFORE_TRAINING if settings.effort == TRAIN else settings.effort
    effort = EFFORTS[name]
    scheme = scheme_for(settings, backends.requirements(spec.variant.backend))
    selection = placement.Selection(settings.exclude, settings.only, settings.keep)
    method, weights = settings.method or effort.method, settings.weight_scales
    options = placement.QuantizeOptions(method, {}, weights, spec.rest, selection)
    start, holdout = initial_options(options), effort.holdout_images
    original = Candidate(loaded, calibration, scheme, start, holdout, context.progress)
    candidate, factors = original, dict[str, tuple[float, ...]]()
    if effort.equalize and calibration.can_recalibrate:
        summaries = calibration.training.summaries
        factors = choose_factors(loaded.model, summaries, portable=scheme.portable)
    if factors:
        # The equalized model is calibrated again, and accepted if its output error is lower.
        equalized = replace(loaded, model=equalize(loaded.model, factors))
        again = measure_calibration_set(equalized, context)
        changed = replace(original, loaded=equalized, calibration=again, factors=factors)
        candidate = choose_equalization(original, changed)
    plan, tried = select_plan(original, candidate, method, name)
    original = replace(original, calibration=candidate.calibration)
    plan, kept_notes = keep_sensitive_blocks(plan, original, name, context.cache)
    plan, bits_notes = keep_sensitive_weights(plan, original, name, context.cache)
    saved, learned_notes = learn_rounding(plan, original, name, context.cache)
    notes, curve = (*candidate.notes, *kept_notes, *bits_notes, *learned_notes), None
    if settings.effort in EFFORTS_WITH_SHIFTS:
        saved, shift_notes = shift_grids(saved, original, name, context.cache)
        notes = (*notes, *shift_notes)
    if settings.effort == TRAIN:
        trained = train(saved, original, settings.training_steps, context.cache)
        saved, notes, curve = trained.saved, (*notes, *trained.notes), trained.curve
    result = QuantizedModel(loaded.model, saved.plan, saved.weights, {}, tried, notes, curve)
    return result, candidate.calibration


def _make_plan_without_ranges(
    loaded: LoadedModel, calibration: CalibrationSet | None, spec: QuantizeSpec, context: JobContext
) -> QuantizedModel:
    """Return the plan of a format without scales of activations.

    With images, channels are equalized where that lowers the output error, and weights learned.
    """
    settings, format_name = context.config.quantize, spec.variant.format
    name = BEFORE_TRAINING if settings.effort == TRAIN else settings.effort
    effort = EFFORTS[name]
    scheme = scheme_for(settings, backends.requirements(spec.variant.backend), format_name)
    selection = placement.Selection(settings.exclude, settings.only, settings.keep)
    method, weights = FORMATS[format_name].activations, settings.weight_scales
    options = placement.QuantizeOptions(method, {}, weights, spec.rest, selection)
    if calibration is None:
        plan = placement.make_plan(loaded.model, scheme, {}, options, format_name)
        return QuantizedModel(loaded.model, plan)
    if FORMATS[format_name].weights_only:
        plan = placement.make_plan(loaded.model, scheme, {}, options, format_name)
        saved, notes = round_on_images(plan, loaded, calibration, name, context.progress)
        return QuantizedModel(loaded.model, saved.plan, saved.weights, notes=notes)
    holdout, progress = effort.holdout_images, context.progress
    original = candidate = Candidate(
        loaded, calibration, scheme, options, holdout, progress, precision=format_name
    )
    factors = dict[str, tuple[float, ...]]()
    if effort.equalize and calibration.images is not None:
        summaries = calibration.training.summaries
        factors = choose_factors(loaded.model, summaries, portable=scheme.portable)
    if factors:
        equalized = replace(loaded, model=equalize(loaded.model, factors))
        changed = replace(original, loaded=equalized, factors=factors)
        candidate = choose_equalization(original, changed)
    plan, _ = select_plan(original, candidate, method, name)
    saved, notes = learn_rounding(plan, original, name, context.cache)
    notes = (*candidate.notes, *notes)
    return QuantizedModel(loaded.model, saved.plan, saved.weights, notes=notes)


def _convert_rest(
    model: ir.Model, kind: HalfPrecision, magnitudes: Mapping[str, float], keep_io: bool
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
    # A dequantized tensor has the magnitude of the original.
    dequantized = dict(magnitudes)
    for node in model.graph:
        quantizer = find_quantizer(node) if node.op_type == "DequantizeLinear" else None
        source = quantizer.inputs[0] if quantizer is not None else None
        name = str(source.name) if source is not None else ""
        if name in magnitudes:
            dequantized[str(node.outputs[0].name)] = magnitudes[name]
    return convert_to_half(model, kind, dequantized, keep_io=keep_io)


def _require_working(model: ir.Model, loaded: LoadedModel) -> float:
    """Return the SQNR of a valid model on a random input; its outputs must be finite as before."""
    onnx_io.require_valid(model)
    before = open_cpu(loaded.model)(random_inputs(loaded.source.inputs, 1, seed=0))
    after = open_cpu(model)(random_inputs(onnx_io.inputs(model), 1, seed=0))
    broken = [name for name in before if _is_finite(before, name) and not _is_finite(after, name)]
    if broken:
        raise QConvertError(
            f"the output `{broken[0]}` of the rewritten model is infinite or NaN",
            hint="it overflows: add `--images` to find where, or use `--rest fp32`",
        )
    return sqnr_db(before, after)


def _is_finite(outputs: Tensors, name: str) -> bool:
    array = output_array(outputs, name)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _describe(result: QuantizedModel, rest: str) -> str:
    parts = []
    if result.plan is not None:
        total, quantized = len(result.plan.layers), result.plan.quantized
        parts.append(f"{quantized} of {total} nodes in {result.plan.precision}")
        parts += [f"{total - quantized} left in float"] if total > quantized else []
    if rest != "fp32":
        nodes = "the rest" if result.plan is not None else f"{len(result.model.graph)} nodes"
        parts.append(f"{nodes} in {rest}")
        parts += [f"{len(result.islands)} of them stay in fp32"] if result.islands else []
    return ", ".join(parts) or "the float model"
