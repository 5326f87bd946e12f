"""Engines that ONNX Runtime's TensorRT provider loads, built by it or by TensorRT itself.

Written from the provider's documents and source. It runs only where there is a GPU; what can be
decided without one is in `tensorrt_options`, `ep_context` and `nvinfer`, and tested there.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from qconvert import onnx_io
from qconvert.backends import nvinfer, nvinfer_apart, ort_session
from qconvert.backends.base import BuildSpec, Coverage, Engine, Heard
from qconvert.backends.ep_context import wrap
from qconvert.backends.folder import Kept, writing
from qconvert.backends.inspected import by_precision
from qconvert.backends.settings import settings
from qconvert.backends.tensorrt_options import (
    CONTEXT,
    PROVIDER,
    Settings,
    behind,
    chosen_for,
    engine_files,
    entries,
    opening,
    provider_options,
)
from qconvert.backends.versions import NetworkTypes
from qconvert.errors import QConvertError, Unavailable

ENGINE = "model.engine"
TIMINGS = "native.timing"
TAKEN = "nodes.json"  # which provider took which nodes: the loaded engine is a single node

Built = tuple[tuple[str, ...], tuple[str, ...]]


def provided(kept: Kept, spec: BuildSpec, runtime: NetworkTypes, heard: Heard) -> Built:
    """Let the provider build; return the files to load, and notes on nodes it did not take.

    The provider tells no progress, and hears of Ctrl-C when it is done.
    """
    _library()
    heard("TensorRT builds the engine, without telling how far it is", None)
    chosen = settings(Settings, spec, "tensorrt")
    made = provider_options(spec, kept.folder, runtime, kept.inputs)
    session = ort_session.start(kept.path, _session_options(chosen), behind(made, chosen))
    taken = ort_session.assigned(session)
    del session  # what the provider still holds back is written now
    files = engine_files(kept.folder, chosen, kept.files)
    if not files:
        raise QConvertError(
            "the TensorRT provider left no engine that loads without a rebuild",
            details=sorted(path.name for path in kept.folder.iterdir()),
            hint="`tensorrt.builder` = native builds with TensorRT itself",
        )
    _note_taken(kept.folder, taken)
    return files, elsewhere(taken)


def native(kept: Kept, spec: BuildSpec, heard: Heard) -> Built:
    """Build with TensorRT itself, strongly typed, and wrap the engine for the provider."""
    chosen = settings(Settings, spec, "tensorrt")
    cache = Path(chosen.timing_cache) / TIMINGS if chosen.timing_cache else None
    wishes = nvinfer.Wishes(
        (spec.profile,),
        chosen.workspace,
        chosen.level,
        chosen.hardware_compatible,
        chosen.weight_stripped,
        cache,
    )
    _library()
    name = ENGINE.replace(".engine", ".stripped.engine") if chosen.weight_stripped else ENGINE
    with writing(kept.folder):
        nvinfer_apart.build("tensorrt", kept, wishes, kept.folder / name, heard)
        onnx_io.save(wrap(kept.model, name, PROVIDER), kept.folder / CONTEXT)
    nodes = [f"{node.op_type} {node.name}" for node in kept.model.graph]
    _note_taken(kept.folder, {PROVIDER: nodes})
    return engine_files(kept.folder, chosen, kept.files), ()


def load(engine: Engine) -> ort_session.OrtSession:
    """Open an engine with the provider alone, unless it was built with others to fall back on."""
    trt = _library()
    chosen, found = chosen_for(engine.made_with), opening(engine)
    path = engine.folder / engine.files[0]
    session = ort_session.start(path, _session_options(chosen), found.listed)

    def covered() -> Coverage:
        return _coverage(engine, chosen, trt)

    return ort_session.OrtSession(session, covered, "cuda", chosen.device, found.captured)


def elsewhere(taken: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a note for every provider but TensorRT that took nodes, with their names."""
    return tuple(
        f"{len(nodes)} nodes run on {name}: {', '.join(nodes)}"
        for name, nodes in sorted(taken.items())
        if name != PROVIDER and nodes
    )


def _session_options(chosen: Settings) -> Any:
    """Return options that leave the graph to TensorRT.

    ONNX Runtime's own rewrites would take Q/DQ pairs apart before TensorRT sees them.
    """
    return ort_session.options(entries=entries(chosen), level=ort_session.NONE)


def _coverage(engine: Engine, chosen: Settings, trt: ModuleType) -> Coverage:
    if chosen.builder == "native" and not chosen.weight_stripped:
        text = nvinfer.inspect(trt, (engine.folder / ENGINE).read_bytes())
        if (counts := by_precision(text)) is not None:
            return Coverage({PROVIDER: sum(counts.values())}, counts)
    taken = json.loads((engine.folder / TAKEN).read_text(encoding="utf-8"))
    why = "ONNX Runtime builds engines that do not tell; `tensorrt.builder` = native makes some do"
    return Coverage(ort_session.counted(taken), None, why)


def _note_taken(folder: Path, taken: Mapping[str, Sequence[str]]) -> None:
    with writing(folder):
        (folder / TAKEN).write_text(json.dumps(taken, indent=1), encoding="utf-8")


def _library() -> ModuleType:
    """Return TensorRT's module, which loads the library that the provider looks for."""
    ort_session.preload()
    try:
        return import_module("tensorrt")
    except ImportError:
        raise Unavailable(
            "TensorRT is not installed", hint='pip install "qconvert[tensorrt]"'
        ) from None
