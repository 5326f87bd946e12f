"""Any two models or engines compared layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qconvert import sources
from qconvert.core.cache import Cache
from qconvert.core.config import Config, ExportConfig
from qconvert.core.errors import UsageError
from qconvert.core.progress import ProgressCallback
from qconvert.images import ImageChoice, open_images
from qconvert.images.image_files import ReadOptions
from qconvert.measure.layer_errors import LayerError
from qconvert.run import job_images, targets
from qconvert.run.explain_errors import GraphPair, ImageSample, cached_layer_errors
from qconvert.run.run_folder import SETTINGS


@dataclass(frozen=True)
class ComparedGraphs:
    """Two graphs; `run` is the folder that they, or one of them, belong to."""

    reference: Path
    graph: Path
    run: Path | None


def find_graphs(first: Path, second: Path) -> ComparedGraphs:
    """Find the graphs of two engines or models."""
    found = [_graph(each) for each in (first, second)]
    runs = (run for graph in found for run in graph.absolute().parents[:3])
    return ComparedGraphs(
        found[0], found[1], next((r for r in runs if (r / SETTINGS).is_file()), None)
    )


def compare_graphs(
    pair: ComparedGraphs, config: Config, count: int, work: tuple[Cache, ProgressCallback]
) -> tuple[LayerError, ...]:
    """Return the errors of the second against the first on some images of the settings.

    Those given are taken, else those that the run was scored on, else those it was calibrated on.
    """
    targets.require_same_inputs({str(each): each for each in (pair.reference, pair.graph)})
    source = sources.load(str(pair.reference), ExportConfig(), trust=False)
    choice = ImageChoice(_image_path(config), count, seed=config.calibration.seed)
    known = job_images.preprocessing_or_default(source, config.preprocess)
    reading = ReadOptions(max_broken=config.calibration.max_broken)
    images = open_images(choice, source.inputs, known, reading)
    sample = ImageSample(
        images, job_images.fitted_preprocessing_or_empty(source, config.preprocess)
    )
    name = f"{pair.reference.stem} {pair.graph.parent.name or pair.graph.stem}"
    return cached_layer_errors(GraphPair(name, pair.reference, pair.graph), sample, *work)


def select_layers(layers: Sequence[LayerError], patterns: Sequence[str]) -> tuple[LayerError, ...]:
    """Return the layers whose tensor, node or operator fits one of the patterns, or all."""
    for pattern in patterns:
        if not any(_matches(layer, pattern) for layer in layers):
            raise UsageError(
                f"`--layers {pattern}` fits no layer", hint="leave it out, and all are listed"
            )
    fitting = (layer for layer in layers if any(_matches(layer, each) for each in patterns))
    return tuple(fitting) if patterns else tuple(layers)


def layers_to_json(layers: Sequence[LayerError]) -> list[dict[str, Any]]:
    """Return layers as JSON has them: an SQNR of equal tensors is `"inf"`, beyond all `"-inf"`."""
    return [
        {
            name: str(each) if each in (math.inf, -math.inf) else each
            for name, each in asdict(layer).items()
        }
        for layer in layers
    ]


def _matches(layer: LayerError, pattern: str) -> bool:
    names = (layer.tensor, layer.node, layer.op)
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def _image_path(config: Config) -> Path:
    for path in (config.evaluate.images, config.calibration.images):
        if path is not None and path.exists():
            return path
    raise UsageError("there are no images", hint="name a folder: `--images PATH`")


def _graph(path: Path) -> Path:
    target = targets.resolve([path])
    if target.run is not None:
        names = ", ".join(f"`{path}/engines/{name}`" for name in target.engines)
        raise UsageError(f"`{path}` is a whole run", hint=f"name one of {names}")
    engine = next(iter(target.engines.values()))
    return engine.folder / engine.graph
