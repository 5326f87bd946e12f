"""Channels brought to a common size, where the answers of the rounded model get nearer by it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qconvert import __version__, onnx_io
from qconvert.graph.observed import observe
from qconvert.pipeline.prepared import MODEL
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.study import Study, nearer
from qconvert.quantize import factors
from qconvert.quantize.equalize import equalized
from qconvert.store import Store

Factors = Mapping[str, tuple[float, ...]]
STEP = "equalize"


@dataclass(frozen=True)
class Evened:
    """A study of the model whose channels have factors, or of the model as it was."""

    study: Study
    factors: Factors = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evened(study: Study, store: Store) -> Evened:
    """Try factors for channels: calibrate again with them, and keep them if that pays."""
    ready, found = study.ready, study.found
    tried = factors.choose(ready.model.graph, observe(ready.model), found.choosing.summaries)
    if not tried or found.again is None:
        return Evened(study)
    started = time.perf_counter()
    path = _stored(study, tried, store)
    other = replace(ready, model=onnx_io.load(path), path=path)
    even = replace(study, ready=other, found=found.again(other))
    wanted = study.wanted()
    before, after = study.far(study.wishes, wanted), even.far(study.wishes, wanted)
    kept = nearer(before, after)
    text = (
        f"channels of {len(tried)} tensors made even: {'kept' if kept else 'dropped'}, distance "
        f"{before.images.mean():.4g} -> {after.images.mean():.4g} {study.on(after)}"
    )
    study.tell(Progress(STEP, text, time.perf_counter() - started))
    return Evened(even, tried, (text,)) if kept else Evened(study)


def _stored(study: Study, tried: Factors, store: Store) -> Path:
    """Return where the model with these factors lies."""

    def make(folder: Path) -> None:
        onnx_io.save(equalized(study.ready.model, tried), folder / MODEL)

    recipe = {
        "name": study.ready.source.name,
        "model": onnx_io.fingerprint(study.ready.model),
        "factors": json.dumps(tried),
        "qconvert": __version__,
    }
    return store.get(STEP, recipe, make).path / MODEL
