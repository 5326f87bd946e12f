"""The errors of a graph layer by layer, kept in the store by all that decides them."""

import io
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import pydantic
from PIL import Image

from qconvert import __version__
from qconvert.backends.base import EngineVariant
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import atomic, onnx_io
from qconvert.core.atomic import copy_into_place
from qconvert.core.cache import Cache
from qconvert.core.errors import QConvertError
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import Tensors, fixed_batch, pad_batch
from qconvert.images.batches import Images
from qconvert.images.decode import BrokenImage, decode_image
from qconvert.images.image_files import DEFAULT_READ_OPTIONS, read_image_bytes
from qconvert.images.listing import IMAGE_SUFFIXES
from qconvert.measure.accuracy import Accuracy
from qconvert.measure.evidence import Evidence, FeatureMap, Thumbnail, tensor_ranges, weight_ranges
from qconvert.measure.feature_maps import (
    WORST_LAYERS,
    choose_tensors,
    collect_maps,
    draw_feature_map,
)
from qconvert.measure.layer_errors import LayerError, measure_layer_errors, worst_layers
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.plan_files import read_equalization_factors
from qconvert.run.context import RunContext
from qconvert.run.job_images import EvaluationSet, open_sample
from qconvert.run.run_folder import RunFolder
from qconvert.run.variant_graphs import BuildInputs, VariantGraph

LAYERS_FILE = "layers.json"
# So many images tell the errors of layers to a tenth of a decibel; all are run thrice.
SAMPLE_IMAGES = 32
# Memory is all tensors of a batch; larger ones take more of it, and are no faster.
SAMPLE_BATCH = 1
COMPARE_STEP = "compare"

LAYERS_ADAPTER = pydantic.TypeAdapter(tuple[LayerError, ...])


@dataclass(frozen=True)
class GraphPair:
    """A graph and the one that it is held against; `name` is how it is told of."""

    name: str
    reference: Path
    graph: Path


def cached_layer_errors(
    pair: GraphPair, sample: EvaluationSet, store: Cache, tell: ProgressCallback
) -> tuple[LayerError, ...]:
    """Return the errors of a graph against its reference, layer by layer."""
    started = time.perf_counter()
    reference, model = onnx_io.load(pair.reference), onnx_io.load(pair.graph)
    listing = sample.images.manifest()
    ours, theirs = onnx_io.fingerprint(model), onnx_io.fingerprint(reference)
    recipe = {
        # Engines with the same graph have the same layers, whatever they are called.
        "name": f"graph {ours[:12]}",
        "model": theirs,
        "graph": ours,
        "images": listing.digest(),
        "preprocessing": json.dumps(dict(sample.preprocessing), sort_keys=True),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
    }

    def make(folder: Path) -> None:
        size = fixed_batch(onnx_io.inputs(reference))
        even = equalize(reference, read_equalization_factors(model))
        found = measure_layer_errors(
            even, model, _sample_batches(sample.images, size, pair.name, tell)
        )
        # Python's JSON has a word for infinity, which equal tensors need.
        told = json.dumps([asdict(each) for each in found], indent=1)
        (folder / LAYERS_FILE).write_text(told, encoding="utf-8")

    kept = store.get_or_make(COMPARE_STEP, recipe, make)
    found = LAYERS_ADAPTER.validate_python(
        json.loads((kept.path / LAYERS_FILE).read_text(encoding="utf-8"))
    )
    size = fixed_batch(onnx_io.inputs(reference)) or 1
    ran = len(listing) // size * size or len(listing)
    text = f"{pair.name}: {count(len(found), 'layer')} on {count(ran, 'image')}"
    tell(Progress(COMPARE_STEP, text, time.perf_counter() - started, kept.hit))
    return found


def _sample_batches(
    images: Images, fixed: int | None, name: str, tell: ProgressCallback
) -> Iterator[Tensors]:
    """Yield the images in batches that the models take.

    Where the models fix the batch, images that do not make a whole one are left out, and fewer than
    one are repeated.
    """
    size, done, total = fixed or SAMPLE_BATCH, 0, len(images.names)
    for batch in images.batches(size):
        count = len(batch.items)
        if fixed and count < fixed:
            if not done:
                yield pad_batch(batch.feeds, fixed)
            return
        yield batch.feeds
        done += count
        tell(Progress(COMPARE_STEP, name, done=done, total=total))


NO_SAMPLE = "no images to run: give `--eval PATH`, or `--images PATH`"
FLOAT_GRAPH = "its graph is that of the float model: the engine's builder chooses what it rounds"


@dataclass(frozen=True)
class ErrorAnalysis:
    """The layers of every engine whose graph is not the float model's, or why it has none."""

    layers: Mapping[str, tuple[LayerError, ...]] = field(default_factory=dict)
    not_analyzed: Mapping[str, str] = field(default_factory=dict)
    sample: EvaluationSet | None = None


def analyze_errors(
    graphs: Mapping[EngineVariant, VariantGraph], base: BuildInputs, shop: RunContext
) -> ErrorAnalysis:
    """Return what can be told of the graphs; one that cannot be run so keeps nothing else back."""
    layers: dict[str, tuple[LayerError, ...]] = {}
    unknown: dict[str, str] = {}
    sample = open_sample(base.loaded.source, shop, SAMPLE_IMAGES)
    for variant, graph in graphs.items():
        if variant.precision == "fp32":
            continue
        if sample is None:
            unknown[variant.name] = NO_SAMPLE
            continue
        pair = GraphPair(variant.precision, shop.folder.model, graph.path)
        try:
            found = cached_layer_errors(pair, sample, shop.cache, shop.progress)
        except QConvertError as error:
            unknown[variant.name] = str(error)
            continue
        if all(each.precision == "fp32" for each in found):
            unknown[variant.name] = FLOAT_GRAPH
        else:
            layers[variant.name] = found
    return ErrorAnalysis(layers, unknown, sample)


FEATURES_FOLDER, MONTAGES_FOLDER, FEATURES_FILE = "analysis/features", "pictures", "features.json"

FEATURE_MAPS_ADAPTER = pydantic.TypeAdapter(tuple[FeatureMap, ...])


@dataclass(frozen=True)
class ShownGraphs:
    """The float model and the graphs beside it, by the names of their variants.

    `layers` are those of the variant whose worst layers are shown.
    """

    reference: Path
    graphs: Mapping[str, Path]
    layers: Sequence[LayerError]


def cached_feature_maps(
    shown: ShownGraphs, sample: EvaluationSet, work: tuple[Cache, ProgressCallback]
) -> tuple[Path, tuple[FeatureMap, ...]]:
    """Return a folder of pictures, and what they show."""
    store, tell = work
    started = time.perf_counter()
    batch = next(iter(sample.images.batches(1)))
    models = {name: onnx_io.load(path) for name, path in shown.graphs.items()}
    reference = onnx_io.load(shown.reference)
    recipe = {
        "name": ", ".join(models),
        "model": onnx_io.fingerprint(reference),
        "graphs": json.dumps({name: onnx_io.fingerprint(each) for name, each in models.items()}),
        "image": f"{batch.items[0].sha256} {batch.items[0].name}",
        "preprocessing": json.dumps(dict(sample.preprocessing), sort_keys=True),
        "worst": json.dumps([each.tensor for each in worst_layers(shown.layers, WORST_LAYERS)]),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
    }

    def make(folder: Path) -> None:
        collected = collect_maps(reference, models, batch.feeds)
        (folder / MONTAGES_FOLDER).mkdir()
        drawn = []
        for number, (tensor, why) in enumerate(
            choose_tensors(collected.exact, shown.layers).items()
        ):
            file = folder / MONTAGES_FOLDER / f"{number:02}.png"
            feature_map = draw_feature_map(collected, tensor, why, file)
            picture = f"{FEATURES_FOLDER}/{file.name}"
            drawn.append(replace(feature_map, image=batch.items[0].name, picture=picture))
        told = [asdict(feature_map) for feature_map in drawn]
        (folder / FEATURES_FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")

    kept = store.get_or_make("features", recipe, make)
    found = FEATURE_MAPS_ADAPTER.validate_python(
        json.loads((kept.path / FEATURES_FILE).read_text(encoding="utf-8"))
    )
    text = f"{len(found)} feature maps of `{batch.items[0].name}`"
    tell(Progress("compare", text, time.perf_counter() - started, kept.hit))
    return kept.path, found


CHANGED_FOLDER = "analysis/changed"
THUMBNAIL_SIDE, JPEG_QUALITY = 112, 80


def make_thumbnails(root: Path, names: Iterable[str]) -> Mapping[Thumbnail, bytes]:
    """Return a thumbnail of each picture and its JPEG; rows of arrays have none."""
    found: dict[Thumbnail, bytes] = {}
    for number, name in enumerate(dict.fromkeys(names)):
        file = root / name
        if not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        try:
            picture = decode_image(
                read_image_bytes(file, DEFAULT_READ_OPTIONS.max_pixels),
                "RGB",
                DEFAULT_READ_OPTIONS.max_pixels,
            )
        except BrokenImage:  # it was read before; a report without this picture says the same
            continue
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=JPEG_QUALITY)
        found[Thumbnail(name, f"{CHANGED_FOLDER}/{number:02}.jpg")] = data.getvalue()
    return found


MAX_SHOWN_GRAPHS = 3


def collect_evidence(
    graphs: Mapping[EngineVariant, VariantGraph],
    base: BuildInputs,
    analysis: ErrorAnalysis,
    shop: RunContext,
) -> Evidence:
    """Return what explains the layers: ranges, weights and feature maps of the worst of them."""
    known = {v: graph for v, graph in graphs.items() if v.name in analysis.layers}
    if not known:
        return Evidence()
    # INT8 is what goes wrong; the first of its engines stands for all.
    variant = next((each for each in known if each.precision == "int8"), next(iter(known)))
    layers, graph = analysis.layers[variant.name], known[variant]
    even = equalize(base.loaded.model, graph.plan.equalized if graph.plan is not None else {})
    found = Evidence(weights=weight_ranges(even, layers))
    if graph.plan is not None and base.calibration is not None:
        summaries = base.calibration.full.summaries
        ranges = tensor_ranges(variant.name, graph.plan, base.loaded.model, summaries, layers)
        found = replace(found, ranges=ranges)
    if analysis.sample is None:
        return found
    shown = ShownGraphs(
        shop.folder.model,
        {v.name: graph.path for v, graph in _distinct_graphs(known).items()},
        layers,
    )
    return replace(found, feature_maps=_draw_feature_maps(shown, analysis, shop))


def add_changed_images(
    found: Evidence, exam: EvaluationSet, scores: Mapping[str, Accuracy], run: RunFolder
) -> Evidence:
    """Return the evidence with small copies of images that changed their answer, and class names.

    The copies go into the run, in place of those of other images.
    """
    changed = [each for score in scores.values() for each in score.changed]
    shifts = [each for score in scores.values() for each in score.shifts]
    small = make_thumbnails(exam.images.root, (each.image for each in changed))
    with atomic.system_temporary_folder() as draft:
        for each, data in small.items():
            (draft / Path(each.picture).name).write_bytes(data)
        if small:
            copy_into_place(draft, run.root / CHANGED_FOLDER)
        elif scores.keys() >= set(run.engines()):
            shutil.rmtree(run.root / CHANGED_FOLDER, ignore_errors=True)
    numbers = {number for each in changed for number in (each.before, each.after, each.label)}
    numbers |= {each.label for each in shifts}
    names = exam.images.classes.names
    known = {
        str(number): names[number]
        for number in sorted(each for each in numbers if each is not None)
        if number < len(names) and names[number]
    }
    return replace(found, thumbnails=tuple(small), classes=known)


def _distinct_graphs(
    known: Mapping[EngineVariant, VariantGraph],
) -> dict[EngineVariant, VariantGraph]:
    """Return some variants whose graphs differ: of equal ones the first."""
    graphs: dict[str, tuple[EngineVariant, VariantGraph]] = {}
    for variant, graph in known.items():
        graphs.setdefault(onnx_io.fingerprint(onnx_io.load(graph.path)), (variant, graph))
    # Floats before integers: as the error grows from row to row.
    ordered = sorted(graphs.values(), key=lambda pair: pair[0].precision == "int8")
    return dict(ordered[:MAX_SHOWN_GRAPHS])


def _draw_feature_maps(
    shown: ShownGraphs, analysis: ErrorAnalysis, shop: RunContext
) -> tuple[FeatureMap, ...]:
    """Draw feature maps and put them into the run."""
    assert analysis.sample is not None
    folder, maps = cached_feature_maps(shown, analysis.sample, (shop.cache, shop.progress))
    if maps:
        copy_into_place(folder / MONTAGES_FOLDER, shop.folder.root / FEATURES_FOLDER)
    return maps
