"""Feature maps of a run: which tensors are shown, and their pictures, kept in the store."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pydantic
from PIL import Image

from qconvert import __version__, onnx_io
from qconvert.backends.ort import VERSION, open_cpu
from qconvert.feeds import Feeds, filled_up, fixed_batch
from qconvert.graph.answers import ANSWER, answering, by_name, common
from qconvert.graph.observed import channel_axis
from qconvert.measure import feature_maps
from qconvert.measure.feature_maps import LEAST_SIDE, ZOOM, Maps, opacity, palette
from qconvert.measure.layers import Layer, decibels
from qconvert.pipeline.layering import Sample
from qconvert.pipeline.progress import Progress, Tell
from qconvert.quantize.equalize import scaled
from qconvert.quantize.found import factors_of
from qconvert.report.evidence import FeatureMap, MapRow
from qconvert.report.layer_errors import worst
from qconvert.store import Store

FEATURES, PICTURES, FOUND = "analysis/features", "pictures", "features.json"
STAGES, WORST = 5, 3
STAGE, ERRS = "the end of a stage", "among the largest errors made"

ADAPTER = pydantic.TypeAdapter(tuple[FeatureMap, ...])


@dataclass(frozen=True)
class Shown:
    """The float model and the graphs beside it, by the names of their variants.

    `layers` are those of the variant whose worst layers are shown.
    """

    reference: Path
    graphs: Mapping[str, Path]
    layers: Sequence[Layer]


def feature_maps_of(
    shown: Shown, sample: Sample, work: tuple[Store, Tell]
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
        "preprocessing": json.dumps(sample.preprocessing, sort_keys=True),
        "worst": json.dumps([each.tensor for each in worst(shown.layers, WORST)]),
        "qconvert": __version__,
        "onnxruntime": VERSION,
    }

    def make(folder: Path) -> None:
        scene = _scene(reference, models, batch.feeds)
        (folder / PICTURES).mkdir()
        chosen = _chosen(scene.exact, shown.layers)
        found = [
            _drawn(scene, tensor, why, folder / PICTURES / f"{number:02}.png")
            for number, (tensor, why) in enumerate(chosen.items())
        ]
        told = [asdict(replace(each, image=batch.items[0].name)) for each in found]
        (folder / FOUND).write_text(json.dumps(told, indent=1), encoding="utf-8")

    kept = store.get("features", recipe, make)
    found = ADAPTER.validate_python(json.loads((kept.path / FOUND).read_text(encoding="utf-8")))
    text = f"{len(found)} feature maps of `{batch.items[0].name}`"
    tell(Progress("compare", text, time.perf_counter() - started, kept.stored))
    return kept.path, found


@dataclass(frozen=True)
class _Scene:
    """The maps of one image: of the float model, and of each variant by its name."""

    exact: Mapping[str, Maps]
    others: Mapping[str, Mapping[str, Maps]]
    nodes: Mapping[str, str]


def _scene(reference: ir.Model, models: Mapping[str, ir.Model], feeds: Feeds) -> _Scene:
    size = fixed_batch(onnx_io.inputs(reference))
    feeds = filled_up(feeds, size) if size else feeds
    shared = [common(reference, model) for model in models.values()]
    hidden = {value.name for value in reference.graph.inputs}
    # Maps whose channels were divided by factors are others than those of the reference.
    for model in models.values():
        hidden |= scaled(reference.graph, factors_of(model))
    tensors = [
        name for name in shared[0] if name not in hidden and all(name in each for each in shared)
    ]
    known = by_name(reference.graph)
    axes = {name: channel_axis(known[name]) or 1 for name in tensors}
    exact = dict(_maps(reference, axes, feeds))
    same = {name: axes[name] for name in exact}
    others = {name: dict(_maps(model, same, feeds)) for name, model in models.items()}
    makers = {name: value.producer() for name, value in known.items()}
    nodes = {name: (made.name or "") if made is not None else "" for name, made in makers.items()}
    return _Scene(exact, others, nodes)


def _maps(model: ir.Model, axes: Mapping[str, int], feeds: Feeds) -> Iterator[tuple[str, Maps]]:
    """Yield what the first image makes of each tensor that is a stack of maps, channels first.

    `axes` has the axis of the channels of each, which the neighbours of a rewritten one do not say.
    """
    if not axes:
        return
    answers = open_cpu(answering(model, list(axes)), literal=True)(feeds)
    for name, axis in axes.items():
        found = np.asarray(answers[ANSWER + name], np.float32)
        if found.ndim == 4:
            maps = np.moveaxis(found[0], axis - 1, 0)
            if min(maps.shape[1:]) >= LEAST_SIDE:
                yield name, maps


def _chosen(exact: Mapping[str, Maps], layers: Sequence[Layer]) -> dict[str, str]:
    """Return the tensors to show, in the order of the network, each with the reason."""
    ends = {maps.shape[1:]: name for name, maps in exact.items()}
    stages = [*ends.values()][:STAGES]
    spatial = [each for each in layers if each.tensor in exact and each.tensor not in stages]
    wrong = [each.tensor for each in worst(spatial, WORST)]
    return {
        name: STAGE if name in stages else ERRS for name in exact if name in stages or name in wrong
    }


def _drawn(scene: _Scene, tensor: str, why: str, picture: Path) -> FeatureMap:
    exact = scene.exact[tensor]
    maps = {name: each[tensor] for name, each in scene.others.items()}
    drawn = feature_maps.montage(exact, maps)
    image = Image.fromarray(drawn.pixels, "P")
    image.putpalette(palette())
    image.save(picture, optimize=True, transparency=opacity())
    values = [MapRow(name, sqnr_db=_db(exact, each)) for name, each in maps.items()]
    return FeatureMap(
        tensor=tensor,
        node=scene.nodes[tensor],
        image="",
        picture=f"{FEATURES}/{picture.name}",
        channels=drawn.channels,
        rows=(MapRow("fp32"), *values, *(MapRow(name, difference=True) for name in maps)),
        low=drawn.low,
        high=drawn.high,
        zoom=ZOOM,
        why=why,
    )


def _db(exact: Maps, found: Maps) -> float | None:
    signal, error = (
        float(np.square(each, dtype=np.float64).sum()) for each in (exact, exact - found)
    )
    return decibels(signal, error)
