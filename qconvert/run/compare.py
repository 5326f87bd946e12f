"""The job `compare`: any two models or engines, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qconvert import sources
from qconvert.core.config import ExportConfig
from qconvert.core.errors import UsageError
from qconvert.measure.layer_errors import LayerError
from qconvert.run import targets
from qconvert.run.context import JobContext, open_sample
from qconvert.run.explain_errors import cached_layer_errors
from qconvert.run.run_folder import SETTINGS


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
