"""Any two models or engines compared layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qconvert import sources
from qconvert.config import Config, Export
from qconvert.errors import UsageError
from qconvert.images import ImageChoice, open_images
from qconvert.images.reading import Reading
from qconvert.measure.layers import Layer
from qconvert.pipeline import pictures, targets
from qconvert.pipeline.layering import Pair, Sample, layers_of
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.run_folder import SETTINGS
from qconvert.store import Store


@dataclass(frozen=True)
class Compared:
    """Two graphs; `run` is the folder that they, or one of them, belong to."""

    reference: Path
    graph: Path
    run: Path | None


def find(first: Path, second: Path) -> Compared:
    """Find the graphs of two engines or models."""
    found = [_graph(each) for each in (first, second)]
    runs = (run for graph in found for run in graph.absolute().parents[:3])
    return Compared(found[0], found[1], next((r for r in runs if (r / SETTINGS).is_file()), None))


def compared(
    pair: Compared, config: Config, count: int, work: tuple[Store, Tell]
) -> tuple[Layer, ...]:
    """Return the errors of the second against the first on some images of the settings.

    Those given are taken, else those that the run was scored on, else those it was calibrated on.
    """
    targets.require_same_inputs({str(each): each for each in (pair.reference, pair.graph)})
    source = sources.load(str(pair.reference), Export(), trust=False)
    choice = ImageChoice(_images(config), count, seed=config.calibration.seed)
    known = pictures.preprocessing_or_usual(source, config)
    reading = Reading(max_broken=config.calibration.max_broken)
    images = open_images(choice, source.inputs, known, reading)
    sample = Sample(images, pictures.settled_or_none(source, config))
    name = f"{pair.reference.stem} {pair.graph.parent.name or pair.graph.stem}"
    return layers_of(Pair(name, pair.reference, pair.graph), sample, *work)


def chosen(layers: Sequence[Layer], patterns: Sequence[str]) -> tuple[Layer, ...]:
    """Return the layers whose tensor, node or operator fits one of the patterns, or all."""
    for pattern in patterns:
        if not any(_fits(layer, pattern) for layer in layers):
            raise UsageError(
                f"`--layers {pattern}` fits no layer", hint="leave it out, and all are listed"
            )
    fitting = (layer for layer in layers if any(_fits(layer, each) for each in patterns))
    return tuple(fitting) if patterns else tuple(layers)


def to_json(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Return layers as JSON has them: an SQNR of equal tensors is `"inf"`, beyond all `"-inf"`."""
    return [
        {
            name: str(each) if each in (math.inf, -math.inf) else each
            for name, each in asdict(layer).items()
        }
        for layer in layers
    ]


def _fits(layer: Layer, pattern: str) -> bool:
    names = (layer.tensor, layer.node, layer.op)
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def _images(config: Config) -> Path:
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
