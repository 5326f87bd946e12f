"""Explain where the errors of engines come from: layer errors, and the evidence a report shows."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import pydantic
from PIL import Image

from qconvert import __version__
from qconvert.backends.base import EngineVariant
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import atomic, onnx_io
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.errors import QConvertError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch
from qconvert.images.batches import Images
from qconvert.images.decode import BrokenImage, decode_image
from qconvert.images.image_files import DEFAULT_READ_OPTIONS, read_image_bytes
from qconvert.images.listing import IMAGE_SUFFIXES
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.evidence import (
    Evidence,
    FeatureMap,
    Thumbnail,
    tensor_ranges,
    weight_ranges,
)
from qconvert.measure.feature_maps import (
    WORST_LAYERS,
    choose_tensors,
    collect_maps,
    draw_feature_map,
)
from qconvert.measure.layer_errors import LayerError, measure_layer_errors, worst_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan_files import read_equalization_factors
from qconvert.run.context import JobContext, RunContext
from qconvert.run.job_images import EvaluationSet, open_sample
from qconvert.run.run_folder import RunFolder
from qconvert.run.variant_graphs import BuildInputs, VariantGraph

COMPARE_STEP = "compare"
# So many images give layer errors to a tenth of a decibel.
SAMPLE_IMAGES = 32
# All tensors of a batch are in memory; larger batches take more of it, and are not faster.
SAMPLE_BATCH = 1
MAX_SHOWN_GRAPHS = 3

FEATURES_FOLDER, CHANGED_FOLDER = "analysis/features", "analysis/changed"
MONTAGES_FOLDER = "pictures"
THUMBNAIL_SIDE, JPEG_QUALITY = 112, 80

# The SQNR of equal tensors is infinite, which Python's JSON can write.
_LAYERS = JsonCodec("layers.json", pydantic.TypeAdapter(tuple[LayerError, ...]))
_FEATURE_MAPS = JsonCodec("features.json", pydantic.TypeAdapter(tuple[FeatureMap, ...]))

NO_SAMPLE = "no images to run: give `--eval PATH`, or `--images PATH`"
FLOAT_GRAPH = "its graph is that of the float model: the engine's builder chooses what to quantize"


@dataclass(frozen=True)
class ErrorAnalysis:
    """The layer errors of every engine whose graph is not the float model's, or why it has none."""

    layers: Mapping[str, tuple[LayerError, ...]] = field(default_factory=dict)
    not_analyzed: Mapping[str, str] = field(default_factory=dict)
    sample: EvaluationSet | None = None


def analyze_errors(
    graphs: Mapping[EngineVariant, VariantGraph], inputs: BuildInputs, context: RunContext
) -> ErrorAnalysis:
    """Compare the graphs with the float model; a failing graph does not stop the others."""
    layers: dict[str, tuple[LayerError, ...]] = {}
    reasons: dict[str, str] = {}
    sample = open_sample(inputs.loaded.source, context, SAMPLE_IMAGES)
    for variant, graph in graphs.items():
        if variant.precision == "fp32":
            continue
        if sample is None:
            reasons[variant.name] = NO_SAMPLE
            continue
        try:
            errors = cached_layer_errors(
                context.folder.model, graph.path, sample, context, name=variant.precision
            )
        except QConvertError as error:
            reasons[variant.name] = str(error)
            continue
        if all(layer.precision == "fp32" for layer in errors):
            reasons[variant.name] = FLOAT_GRAPH
        else:
            layers[variant.name] = errors
    return ErrorAnalysis(layers, reasons, sample)


def cached_layer_errors(
    reference_file: Path, graph_file: Path, sample: EvaluationSet, context: JobContext, name: str
) -> tuple[LayerError, ...]:
    """Return the layer errors of a graph against its reference; `name` is for progress."""
    end = start_step(context.progress, COMPARE_STEP)
    reference, model = onnx_io.load(reference_file), onnx_io.load(graph_file)
    size = fixed_batch(onnx_io.inputs(reference))
    manifest = sample.images.manifest()
    graph_hash = onnx_io.fingerprint(model)
    key = {
        # Engines with the same graph have the same layers, whatever their names.
        "name": f"graph {graph_hash[:12]}",
        "model": onnx_io.fingerprint(reference),
        "graph": graph_hash,
        "images": manifest.digest(),
        "preprocessing": json.dumps(dict(sample.preprocessing), sort_keys=True),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
    }

    def compute() -> tuple[LayerError, ...]:
        equalized = equalize(reference, read_equalization_factors(model))
        batches = _sample_batches(sample.images, size, name, context.progress)
        return measure_layer_errors(equalized, model, batches)

    result = cached_step(context.cache, COMPARE_STEP, key, compute, _LAYERS)
    images = len(manifest) // (size or 1) * (size or 1) or len(manifest)
    end(f"{name}: {count(len(result.value), 'layer')} on {count(images, 'image')}", result.hit)
    return result.value


def _sample_batches(
    images: Images, fixed_size: int | None, name: str, progress: ProgressCallback
) -> Iterator[Tensors]:
    """Yield the images in batches that the models take.

    Where the models fix the batch, images that do not fill one are left out, and fewer than one
    batch are repeated.
    """
    done, total = 0, len(images.names)
    for batch in images.batches(fixed_size or SAMPLE_BATCH):
        if fixed_size and len(batch.items) < fixed_size:
            if not done:
                yield pad_batch(batch.feeds, fixed_size)
            return
        yield batch.feeds
        done += len(batch.items)
        progress(Progress(COMPARE_STEP, name, done=done, total=total))


def collect_evidence(
    graphs: Mapping[EngineVariant, VariantGraph],
    inputs: BuildInputs,
    analysis: ErrorAnalysis,
    context: RunContext,
) -> Evidence:
    """Return the ranges, weights and feature maps of the layers with the largest errors."""
    analyzed = {
        variant: graph for variant, graph in graphs.items() if variant.name in analysis.layers
    }
    if not analyzed:
        return Evidence()
    # INT8 has the largest errors; the first of its engines stands for all.
    variant = next((key for key in analyzed if key.precision == "int8"), next(iter(analyzed)))
    layers, plan = analysis.layers[variant.name], analyzed[variant].plan
    model = inputs.loaded.model
    weights = weight_ranges(equalize(model, plan.equalized if plan is not None else {}), layers)
    evidence = Evidence(weights=weights)
    if plan is not None and inputs.calibration is not None:
        summaries = inputs.calibration.full.summaries
        ranges = tensor_ranges(variant.name, plan, model, summaries, layers)
        evidence = replace(evidence, ranges=ranges)
    if analysis.sample is not None:
        shown = _distinct_graphs(analyzed)
        maps = _add_feature_maps(shown, layers, analysis.sample, context)
        evidence = replace(evidence, feature_maps=maps)
    return evidence


def _distinct_graphs(graphs: Mapping[EngineVariant, VariantGraph]) -> dict[str, Path]:
    """Return some graphs that differ, by the name of the first variant of each."""
    first: dict[str, tuple[EngineVariant, Path]] = {}
    for variant, graph in graphs.items():
        first.setdefault(onnx_io.fingerprint(onnx_io.load(graph.path)), (variant, graph.path))
    # Floats before integers, as the error grows from row to row.
    ordered = sorted(first.values(), key=lambda pair: pair[0].precision == "int8")
    return {variant.name: path for variant, path in ordered[:MAX_SHOWN_GRAPHS]}


def _add_feature_maps(
    graphs: Mapping[str, Path],
    layers: Sequence[LayerError],
    sample: EvaluationSet,
    context: RunContext,
) -> tuple[FeatureMap, ...]:
    """Draw the feature maps of the first image, cached, and put them into the run's folder."""
    end = start_step(context.progress, COMPARE_STEP)
    batch = next(iter(sample.images.batches(1)))
    image = batch.items[0]
    reference = onnx_io.load(context.folder.model)
    models = {name: onnx_io.load(path) for name, path in graphs.items()}
    hashes = {name: onnx_io.fingerprint(model) for name, model in models.items()}
    worst = [layer.tensor for layer in worst_layers(layers, WORST_LAYERS)]
    key = {
        "name": ", ".join(models),
        "model": onnx_io.fingerprint(reference),
        "graphs": json.dumps(hashes),
        "image": f"{image.sha256} {image.name}",
        "preprocessing": json.dumps(dict(sample.preprocessing), sort_keys=True),
        "worst": json.dumps(worst),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
    }

    def make(folder: Path) -> None:
        collected = collect_maps(reference, models, batch.feeds)
        (folder / MONTAGES_FOLDER).mkdir()
        drawn = []
        for number, (tensor, why) in enumerate(choose_tensors(collected.exact, layers).items()):
            file = folder / MONTAGES_FOLDER / f"{number:02}.png"
            feature_map = draw_feature_map(collected, tensor, why, file)
            picture = f"{FEATURES_FOLDER}/{file.name}"
            drawn.append(replace(feature_map, image=image.name, picture=picture))
        _FEATURE_MAPS.save(tuple(drawn), folder)

    entry = context.cache.get_or_make("features", key, make)
    maps = _FEATURE_MAPS.load(entry.path)
    end(f"{len(maps)} feature maps of `{image.name}`", entry.hit)
    if maps:
        atomic.copy_into_place(entry.path / MONTAGES_FOLDER, context.folder.root / FEATURES_FOLDER)
    return maps


def add_changed_images(
    evidence: Evidence,
    evaluation_set: EvaluationSet,
    scores: Mapping[str, Accuracy],
    folder: RunFolder,
) -> Evidence:
    """Add small copies of images whose prediction changed, and the names of their classes.

    The copies replace those in the run's folder.
    """
    images = evaluation_set.images
    changed = [image for accuracy in scores.values() for image in accuracy.changed]
    thumbnails = make_thumbnails(images.root, (image.image for image in changed))
    with atomic.system_temporary_folder() as temporary:
        for thumbnail, data in thumbnails.items():
            (temporary / Path(thumbnail.picture).name).write_bytes(data)
        if thumbnails:
            atomic.copy_into_place(temporary, folder.root / CHANGED_FOLDER)
        elif scores.keys() >= set(folder.engines()):
            shutil.rmtree(folder.root / CHANGED_FOLDER, ignore_errors=True)
    numbers = {number for image in changed for number in (image.before, image.after, image.label)}
    numbers |= {shift.label for accuracy in scores.values() for shift in accuracy.shifts}
    names = dict(enumerate(images.classes.names))
    classes = {
        str(number): names[number]
        for number in sorted(number for number in numbers if number is not None)
        if names.get(number)
    }
    return replace(evidence, thumbnails=tuple(thumbnails), classes=classes)


def make_thumbnails(root: Path, names: Iterable[str]) -> Mapping[Thumbnail, bytes]:
    """Return a thumbnail of each image file, with its JPEG; rows of arrays have none."""
    limit = DEFAULT_READ_OPTIONS.max_pixels
    thumbnails: dict[Thumbnail, bytes] = {}
    for number, name in enumerate(dict.fromkeys(names)):
        if not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        try:
            image = decode_image(read_image_bytes(root / name, limit), "RGB", limit)
        except BrokenImage:  # it was read before; the report is complete without this image
            continue
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=JPEG_QUALITY)
        thumbnails[Thumbnail(name, f"{CHANGED_FOLDER}/{number:02}.jpg")] = data.getvalue()
    return thumbnails
