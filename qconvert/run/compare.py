"""The job `compare`, and the part of a build that finds where the errors of engines come from."""

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx_ir as ir
from PIL import Image

from qconvert import sources
from qconvert.backends.base import EngineVariant
from qconvert.core import atomic, onnx_io
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, start_step
from qconvert.core.run_files import SETTINGS
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch
from qconvert.images import image_files
from qconvert.images.listing import Images
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.evidence import Evidence, FeatureMap, Thumbnail, tensor_ranges, weight_ranges
from qconvert.measure.feature_maps import WORST_LAYERS, draw_feature_maps
from qconvert.measure.layer_errors import LayerError, measure_layer_errors, worst_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan_files import read_equalization_factors
from qconvert.run import targets
from qconvert.run.context import JobContext, RunContext, cache_key, open_sample
from qconvert.run.prediction_pictures import draw_changed_predictions, is_file_of_picture
from qconvert.run.prediction_runs import PredictionRuns
from qconvert.run.variants import BuildInputs, VariantGraph

STEP = "compare"
FEATURES_FOLDER, CHANGED_FOLDER = "analysis/features", "analysis/changed"

# The SQNR of equal tensors is infinite, which Python's JSON can write.
_LAYERS = JsonCodec("layers.json", tuple[LayerError, ...])
_FEATURE_MAPS = JsonCodec("features.json", tuple[FeatureMap, ...])


def analyze_errors(
    graphs: Mapping[EngineVariant, VariantGraph], inputs: BuildInputs, context: RunContext
) -> tuple[dict[str, tuple[LayerError, ...] | str], Evidence]:
    """Return the layer errors of every engine, or why it has none, and the evidence for them."""
    results: dict[str, tuple[LayerError, ...] | str] = {}
    layers: dict[EngineVariant, tuple[LayerError, ...]] = {}
    # This many images give layer errors to a tenth of a decibel.
    sample = open_sample(inputs.loaded.source, context, 32)
    for variant in [variant for variant in graphs if variant.precision != "fp32"]:
        if sample is None:
            results[variant.name] = "no images to run: give `--eval PATH`, or `--images PATH`"
            continue
        try:
            graph, precision = graphs[variant].path, variant.precision
            errors = cached_layer_errors(context.folder.model, graph, sample, context, precision)
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
    # INT8 has the largest errors; its first engine represents all.
    variant = next((key for key in layers if key.precision == "int8"), next(iter(layers)))
    errors, plan, model = layers[variant], graphs[variant].plan, inputs.loaded.model
    full = inputs.calibration and inputs.calibration.full
    ranges = (
        tensor_ranges(variant.name, plan, model, full.summaries, errors) if plan and full else ()
    )
    weights = weight_ranges(equalize(model, plan.equalized if plan is not None else {}), errors)
    # Graphs that differ, each under its first variant.
    different: dict[str, EngineVariant] = {}
    for key in layers:
        different.setdefault(onnx_io.fingerprint(onnx_io.load(graphs[key].path)), key)
    # Floats before integers, as the error grows from row to row.
    ordered = sorted(different.values(), key=lambda key: key.precision == "int8")
    shown = {key.name: onnx_io.load(graphs[key].path) for key in ordered[:3]}
    feature_maps = _cached_feature_maps(shown, errors, sample, context)
    return results, Evidence(ranges, weights, feature_maps)


def cached_layer_errors(
    reference_file: Path, graph_file: Path, sample: Images, context: JobContext, name: str
) -> tuple[LayerError, ...]:
    """Return the layer errors of a graph against its reference; `name` is for progress."""
    end = start_step(context.progress, STEP)
    reference, model = onnx_io.load(reference_file), onnx_io.load(graph_file)
    size = fixed_batch(onnx_io.inputs(reference))
    manifest = sample.manifest()
    graph_hash = onnx_io.fingerprint(model)
    # Engines with the same graph have the same layers, whatever their names.
    name_in_cache, fingerprint = f"graph {graph_hash[:12]}", onnx_io.fingerprint(reference)
    key = cache_key(name_in_cache, fingerprint, graph=graph_hash, images=sample.digest())

    def sample_batches() -> Iterator[Tensors]:
        done = 0
        # All tensors of a batch are in memory; larger batches need more memory and are no faster.
        for batch in sample.batches(size or 1):
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


def _cached_feature_maps(
    models: Mapping[str, ir.Model],
    layers: Sequence[LayerError],
    sample: Images,
    context: RunContext,
) -> tuple[FeatureMap, ...]:
    """Draw the feature maps of the first image, and put them into the run's folder."""
    end = start_step(context.progress, STEP)
    batch = next(iter(sample.batches(1)))
    image = batch.items[0]
    reference = onnx_io.load(context.folder.model)
    key = cache_key(
        ", ".join(models),
        onnx_io.fingerprint(reference),
        graphs=[onnx_io.fingerprint(model) for model in models.values()],
        image=f"{image.sha256} {image.name}",
        preprocessing=dict(sample.preprocessing),
        worst=[layer.tensor for layer in worst_layers(layers, WORST_LAYERS)],
    )

    def make(folder: Path) -> None:
        (folder / "pictures").mkdir()
        maps = draw_feature_maps(reference, models, batch.feeds, layers, folder / "pictures")
        named = [
            replace(row, image=image.name, picture=f"{FEATURES_FOLDER}/{row.picture}")
            for row in maps
        ]
        _FEATURE_MAPS.save(tuple(named), folder)

    entry, hit = context.cache.get_or_make("features", key, make)
    maps = _FEATURE_MAPS.load(entry)
    end(f"{len(maps)} feature maps of `{image.name}`", hit)
    if maps:
        atomic.copy_into_place(entry / "pictures", context.folder.root / FEATURES_FOLDER)
    return maps


def add_changed_images(
    evidence: Evidence,
    images: Images,
    scores: Mapping[str, Accuracy],
    runs: PredictionRuns,
    context: RunContext,
) -> Evidence:
    """Add pictures of images whose prediction changed, and the names of their classes."""
    changed = [row for accuracy in scores.values() for row in accuracy.changed]
    thumbnails, folder = [], context.folder
    with atomic.temporary_folder() as temporary:
        drawn = draw_changed_predictions(runs, images, scores, temporary, context)
        thumbnails += [replace(row, picture=f"{CHANGED_FOLDER}/{row.picture}") for row in drawn]
        for number, name in enumerate(dict.fromkeys(row.image for row in changed)):
            if not is_file_of_picture(name):
                continue
            # It was read before; the report is complete without it.
            with contextlib.suppress(image_files.BrokenImage):
                data = image_files.read_image_bytes(images.root / name)
                image = image_files.load_pixels(image_files.open_header(data), "RGB")
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


def find_graphs(first: Path, second: Path) -> tuple[Path, Path, Path | None]:
    """Return the graphs of two engines or models, and the folder of the run of one of them."""
    engines = map(targets.resolve_engine, (first, second))
    reference, graph = (engine.folder / engine.graph for engine in engines)
    folders = [*reference.absolute().parents[:3], *graph.absolute().parents[:3]]
    run = next((folder for folder in folders if (folder / SETTINGS).is_file()), None)
    return reference, graph, run


def compare_graphs(
    reference: Path, graph: Path, image_limit: int, context: JobContext
) -> tuple[LayerError, ...]:
    """Return the layer errors of a graph, on some images of the settings."""
    targets.require_same_inputs({str(path): path for path in (reference, graph)})
    source = sources.load(str(reference), ExportConfig(), trust=False)
    sample = open_sample(source, context, image_limit)
    if sample is None:
        raise UsageError("there are no images", hint="name a folder: `--images PATH`")
    name = f"{reference.stem} {graph.parent.name or graph.stem}"
    return cached_layer_errors(reference, graph, sample, context, name)


def select_layers(layers: Sequence[LayerError], patterns: Sequence[str]) -> tuple[LayerError, ...]:
    """Return the layers whose tensor, node or operator matches one of the patterns, or all."""
    selected: set[LayerError] = set()
    for pattern in patterns:
        matching = {
            layer
            for layer in layers
            for name in (layer.tensor, layer.node, layer.op)
            if name == pattern or fnmatchcase(name, pattern)
        }
        if not matching:
            raise UsageError(
                f"`--layers {pattern}` matches no layer", hint="leave it out to list all layers"
            )
        selected |= matching
    return tuple(layer for layer in layers if not patterns or layer in selected)


def layers_to_json(layers: Sequence[LayerError]) -> list[dict[str, Any]]:
    """Return layers as JSON values; an infinite SQNR is `"inf"` or `"-inf"`."""
    return [
        {
            name: str(value) if value in (math.inf, -math.inf) else value
            for name, value in asdict(layer).items()
        }
        for layer in layers
    ]
