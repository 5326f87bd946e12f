"""Explain where the errors of engines come from: layer errors, and the evidence a report shows."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pydantic
from PIL import Image

from qconvert.backends.base import EngineVariant
from qconvert.core import atomic, onnx_io
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.errors import QConvertError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, start_step
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch
from qconvert.images.image_files import (
    BrokenImage,
    load_pixels,
    open_header,
    read_image_bytes,
)
from qconvert.images.listing import IMAGE_SUFFIXES
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.evidence import (
    Evidence,
    FeatureMap,
    TensorRange,
    Thumbnail,
    tensor_ranges,
    weight_ranges,
)
from qconvert.measure.feature_maps import WORST_LAYERS, draw_feature_maps
from qconvert.measure.layer_errors import LayerError, measure_layer_errors, worst_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan_files import read_equalization_factors
from qconvert.run.context import EvaluationSet, JobContext, RunContext, cache_key, open_sample
from qconvert.run.run_folder import RunFolder
from qconvert.run.variants import BuildInputs, VariantGraph

STEP = "compare"
FEATURES_FOLDER, CHANGED_FOLDER = "analysis/features", "analysis/changed"

# The SQNR of equal tensors is infinite, which Python's JSON can write.
_LAYERS = JsonCodec("layers.json", pydantic.TypeAdapter(tuple[LayerError, ...]))
_FEATURE_MAPS = JsonCodec("features.json", pydantic.TypeAdapter(tuple[FeatureMap, ...]))


def analyze_errors(
    graphs: Mapping[EngineVariant, VariantGraph], inputs: BuildInputs, context: RunContext
) -> tuple[dict[str, tuple[LayerError, ...] | str], Evidence]:
    """Return the layer errors of every engine, or why it has none, and the evidence for them.

    Graphs are compared with the float model; a failing one does not stop the others.
    """
    results: dict[str, tuple[LayerError, ...] | str] = {}
    layers: dict[EngineVariant, tuple[LayerError, ...]] = {}
    # This many images give layer errors to a tenth of a decibel.
    sample = open_sample(inputs.loaded.source, context, 32)
    for variant, graph in graphs.items():
        if variant.precision == "fp32":
            continue
        if sample is None:
            results[variant.name] = "no images to run: give `--eval PATH`, or `--images PATH`"
            continue
        try:
            errors = cached_layer_errors(
                context.folder.model, graph.path, sample, context, name=variant.precision
            )
        except QConvertError as error:
            results[variant.name] = str(error)
            continue
        if all(layer.precision == "fp32" for layer in errors):
            results[variant.name] = (
                "its graph is that of the float model: the engine's builder chooses what to "
                "quantize"
            )
        else:
            results[variant.name] = layers[variant] = errors
    if sample is None or not layers:
        return results, Evidence()
    return results, _collect_evidence(graphs, layers, inputs, sample, context)


def cached_layer_errors(
    reference_file: Path, graph_file: Path, sample: EvaluationSet, context: JobContext, name: str
) -> tuple[LayerError, ...]:
    """Return the layer errors of a graph against its reference; `name` is for progress."""
    end = start_step(context.progress, STEP)
    reference, model = onnx_io.load(reference_file), onnx_io.load(graph_file)
    size = fixed_batch(onnx_io.inputs(reference))
    manifest = sample.images.manifest()
    graph_hash = onnx_io.fingerprint(model)
    # Engines with the same graph have the same layers, whatever their names.
    key = cache_key(
        f"graph {graph_hash[:12]}",
        onnx_io.fingerprint(reference),
        graph=graph_hash,
        images=sample.digest(),
    )

    def sample_batches() -> Iterator[Tensors]:
        done = 0
        # All tensors of a batch are in memory; larger batches need more memory and are no faster.
        for batch in sample.images.batches(size or 1):
            # Images that do not fill a batch are left out; fewer than one batch are repeated.
            if size and len(batch.items) < size and done:
                return
            yield pad_batch(batch.feeds, size) if size else batch.feeds
            done += len(batch.items)
            context.progress(Progress(STEP, name, done=done, total=len(manifest)))

    def compute() -> tuple[LayerError, ...]:
        equalized = equalize(reference, read_equalization_factors(model))
        return measure_layer_errors(equalized, model, sample_batches())

    layers, hit = cached_step(context.cache, STEP, key, compute, _LAYERS)
    images = len(manifest) // (size or 1) * (size or 1) or len(manifest)
    end(f"{name}: {count(len(layers), 'layer')} on {count(images, 'image')}", hit)
    return layers


def _collect_evidence(
    graphs: Mapping[EngineVariant, VariantGraph],
    layers: Mapping[EngineVariant, tuple[LayerError, ...]],
    inputs: BuildInputs,
    sample: EvaluationSet,
    context: RunContext,
) -> Evidence:
    """Return the ranges, weights and feature maps of the layers with the largest errors."""
    # INT8 has the largest errors; its first engine represents all.
    variant = next((key for key in layers if key.precision == "int8"), next(iter(layers)))
    errors, plan, model = layers[variant], graphs[variant].plan, inputs.loaded.model
    ranges: tuple[TensorRange, ...] = ()
    if plan is not None and inputs.calibration is not None:
        summaries = inputs.calibration.full.summaries
        ranges = tensor_ranges(variant.name, plan, model, summaries, errors)
    weights = weight_ranges(equalize(model, plan.equalized if plan is not None else {}), errors)
    # Graphs that differ, each under its first variant.
    different: dict[str, tuple[EngineVariant, Path]] = {}
    for key in layers:
        path = graphs[key].path
        different.setdefault(onnx_io.fingerprint(onnx_io.load(path)), (key, path))
    # Floats before integers, as the error grows from row to row.
    ordered = sorted(different.items(), key=lambda item: item[1][0].precision == "int8")
    shown = {key.name: (hashed, path) for hashed, (key, path) in ordered[:3]}
    return Evidence(ranges, weights, _cached_feature_maps(shown, errors, sample, context))


def _cached_feature_maps(
    graphs: Mapping[str, tuple[str, Path]],
    layers: Sequence[LayerError],
    sample: EvaluationSet,
    context: RunContext,
) -> tuple[FeatureMap, ...]:
    """Draw the feature maps of the first image, and put them into the run's folder.

    `graphs` are fingerprints and files by variant.
    """
    end = start_step(context.progress, STEP)
    batch = next(iter(sample.images.batches(1)))
    image = batch.items[0]
    reference = onnx_io.load(context.folder.model)
    key = cache_key(
        ", ".join(graphs),
        onnx_io.fingerprint(reference),
        graphs=[hashed for hashed, _ in graphs.values()],
        image=f"{image.sha256} {image.name}",
        preprocessing=dict(sample.preprocessing),
        worst=[layer.tensor for layer in worst_layers(layers, WORST_LAYERS)],
    )

    def make(folder: Path) -> None:
        montages = folder / "pictures"
        montages.mkdir()
        models = {name: onnx_io.load(path) for name, (_, path) in graphs.items()}
        drawn = draw_feature_maps(reference, models, batch.feeds, layers, montages)
        named = [
            replace(maps, image=image.name, picture=f"{FEATURES_FOLDER}/{maps.picture}")
            for maps in drawn
        ]
        _FEATURE_MAPS.save(tuple(named), folder)

    entry = context.cache.get_or_make("features", key, make)
    maps = _FEATURE_MAPS.load(entry.path)
    end(f"{len(maps)} feature maps of `{image.name}`", entry.hit)
    if maps:
        atomic.copy_into_place(entry.path / "pictures", context.folder.root / FEATURES_FOLDER)
    return maps


def add_changed_images(
    evidence: Evidence,
    evaluation_set: EvaluationSet,
    scores: Mapping[str, Accuracy],
    folder: RunFolder,
) -> Evidence:
    """Add small copies of images whose prediction changed, and the names of their classes.

    The copies replace those in the run's folder; rows of arrays have none.
    """
    images = evaluation_set.images
    changed = [row for accuracy in scores.values() for row in accuracy.changed]
    thumbnails = []
    with atomic.temporary_folder() as temporary:
        for number, name in enumerate(dict.fromkeys(row.image for row in changed)):
            if not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            try:
                data = read_image_bytes(images.root / name)
                image = load_pixels(open_header(data), "RGB")
            except BrokenImage:  # it was read before; the report is complete without it
                continue
            image.thumbnail((112, 112), Image.Resampling.BOX)
            image.save(temporary / f"{number:02}.jpg", quality=80)
            thumbnails.append(Thumbnail(name, f"{CHANGED_FOLDER}/{number:02}.jpg"))
        if thumbnails:
            atomic.copy_into_place(temporary, folder.root / CHANGED_FOLDER)
        elif scores.keys() >= set(folder.engines()):
            shutil.rmtree(folder.root / CHANGED_FOLDER, ignore_errors=True)
    numbers = {number for row in changed for number in (row.before, row.after, row.label)}
    numbers |= {shift.label for accuracy in scores.values() for shift in accuracy.shifts}
    names = enumerate(images.classes.names)
    classes = {str(number): name for number, name in names if name and number in numbers}
    return replace(evidence, thumbnails=tuple(thumbnails), classes=classes)
