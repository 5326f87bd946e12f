"""The first steps of every job: read the source, and clean its graph or take it from the store."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from qconvert import __version__, sources
from qconvert.backends.base import Engine
from qconvert.backends.crash_check import check_file_for_crash, check_for_crash, time_limit_seconds
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core import cache, onnx_io
from qconvert.core.cache import Cache, file_sha256
from qconvert.core.config import Config, ExportConfig
from qconvert.core.errors import QConvertError
from qconvert.core.progress import Progress, ProgressCallback, megabytes
from qconvert.core.tensors import fixed_batch, random_inputs
from qconvert.graph import clean
from qconvert.sources import MODEL_FILE, LoadedModel, Source

STEPS_FILE = "steps.json"
LIBRARIES = ("onnx", "onnx-ir", "onnxslim", "numpy")


def load_and_clean(
    config: Config, store: Cache, tell: ProgressCallback, *, trust: bool
) -> LoadedModel:
    """Read `config.model` and clean it."""
    clean.require_known_passes(config.prepare.skip)
    source = _read(config, tell, trust=trust)
    return _clean(source, config, store, tell)


def load_clean(path: Path, tell: ProgressCallback) -> LoadedModel:
    """Read a model that is clean already."""
    started = time.perf_counter()
    source = sources.load(str(path), ExportConfig(), trust=False)
    tell(Progress("load", f"{path}", time.perf_counter() - started))
    return LoadedModel(source, source.model, path, ())


def _read(config: Config, tell: ProgressCallback, *, trust: bool) -> Source:
    tell(Progress("load", f"reading {config.model}"))
    started = time.perf_counter()
    source = sources.load(str(config.model), config.export, trust=trust)
    size = onnx_io.weight_bytes(source.model)
    text = f"{config.model}: {len(source.model.graph)} nodes, {megabytes(size)} of weights"
    tell(Progress("load", "\n".join([text, *source.notes]), time.perf_counter() - started))
    return source


def _clean(source: Source, config: Config, store: Cache, tell: ProgressCallback) -> LoadedModel:
    """Clean the graph, or take the clean graph of the same bytes, passes and library versions."""
    tell(Progress("prepare", "cleaning the graph"))
    started = time.perf_counter()
    opset, skip = config.export.opset, config.prepare.skip
    feeds = random_inputs(source.inputs, 2, seed=0)

    def make(folder: Path) -> None:
        if source.run is None:
            check_for_crash(source.model, feeds)
        try:
            done = clean.clean_model(
                source.model, opset, skip, lambda model: open_cpu(model)(feeds)
            )
        except QConvertError as error:
            raise _explain_failure(error, source) from None
        onnx_io.save(done.model, folder / MODEL_FILE)
        (folder / STEPS_FILE).write_text(json.dumps([asdict(step) for step in done.steps]))

    recipe = {
        "model": onnx_io.fingerprint(source.model),
        "name": source.name,
        "opset": str(opset),
        "skip": ",".join(skip),
        "inputs": ", ".join(str(spec) for spec in source.inputs),
        "qconvert": __version__,
        "onnxruntime": ORT_VERSION,
        **{name: version(name) for name in LIBRARIES},
    }
    found = store.get_or_make("prepare", recipe, make)
    path = found.path / MODEL_FILE
    model = onnx_io.load(path)
    # Two sources that differ in nothing else share the stored graph.
    model.metadata_props.clear()
    model.metadata_props.update(source.model.metadata_props)
    steps = tuple(
        clean.PassResult(**step) for step in json.loads((found.path / STEPS_FILE).read_text())
    )
    tell(Progress("prepare", _describe_steps(steps), time.perf_counter() - started, found.hit))
    return LoadedModel(source, model, path, steps)


def _explain_failure(error: QConvertError, source: Source) -> QConvertError:
    """Return what to say where a model was not cleaned: it may run on a batch of one only."""
    if fixed_batch(source.inputs) is not None or _runs(source, 2) or not _runs(source, 1):
        return error
    return QConvertError(
        f"`{source.name}` says that it takes any batch, and runs on a batch of 1 only",
        details=[str(error)],
        hint="fix it with `--batch 1`",
    )


def _runs(source: Source, batch: int) -> bool:
    try:
        open_cpu(source.model)(random_inputs(source.inputs, batch, seed=0))
    except QConvertError:
        return False
    return True


def _describe_steps(steps: tuple[clean.PassResult, ...]) -> str:
    changed = [f"{step.name}: {step.changed}" for step in steps if step.changed]
    dropped = [f"{step.name} left out" for step in steps if step.dropped]
    return ", ".join(changed + dropped) or "nothing to clean"


def crash_check_engines(engines: Iterable[Engine]) -> None:
    """Try the graphs of engines, and what the CPU loads of them."""
    for engine in engines:
        names = {engine.graph, *(engine.files[:1] if engine.backend == "cpu" else ())}
        for name in sorted(names):
            crash_check_once(engine.folder / name, engine.folder / engine.graph)


def crash_check_once(path: Path, graph: Path) -> None:
    """Try a file that takes the inputs of a graph, unless this store knows that it was tried."""
    model = onnx_io.load(graph)
    specs = onnx_io.inputs(model)
    known = not any(spec.has_dynamic_shape for spec in specs)
    feeds = random_inputs(specs, fixed_batch(specs) or 1, seed=0) if known else {}
    recipe = {
        "file": file_sha256(path),
        "graph": onnx_io.fingerprint(model),
        "onnxruntime": ORT_VERSION,
    }
    seconds = time_limit_seconds(model)
    cache.open_default().get_or_make(
        "rehearse", recipe, lambda folder: check_file_for_crash(path, feeds, seconds)
    )
