"""The first stage of every job: read the model, and clean its graph or take it from the cache."""

import json
from dataclasses import asdict
from pathlib import Path

from qconvert import sources
from qconvert.backends.crash_check import check_for_crash
from qconvert.backends.ort import ORT_VERSION, open_cpu
from qconvert.core import cache, onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError
from qconvert.core.progress import ProgressCallback, megabytes, start_step
from qconvert.core.tensors import fixed_batch, random_inputs
from qconvert.graph import clean
from qconvert.run.context import JobContext, cache_key
from qconvert.sources import MODEL_FILE, LoadedModel, Source

STEPS_FILE = "steps.json"


def load_and_clean(context: JobContext) -> LoadedModel:
    """Read the model of the settings and clean its graph; the clean graph is cached."""
    config = context.config
    opset, skip = config.export.opset, config.prepare.skip
    clean.require_known_passes(skip)
    end = start_step(context.progress, "load", f"reading {config.model}")
    source = sources.load(str(config.model), config.export, trust=context.trust)
    size = megabytes(onnx_io.weight_bytes(source.model))
    text = f"{config.model}: {len(source.model.graph)} nodes, {size} of weights"
    end("\n".join([text, *source.notes]), False)
    end = start_step(context.progress, "prepare", "cleaning the graph")

    def make(folder: Path) -> None:
        feeds = random_inputs(source.inputs, 2, seed=0)
        if source.run is None:
            check_for_crash(source.model, feeds)
        try:
            result = clean.clean_model(
                source.model, opset, skip, lambda model: open_cpu(model)(feeds)
            )
        except QConvertError as error:
            if fixed_batch(source.inputs) is None and not _runs(source, 2) and _runs(source, 1):
                raise QConvertError(
                    f"`{source.name}` declares a dynamic batch, but runs on a batch of 1 only",
                    details=[str(error)],
                    hint="fix it with `--batch 1`",
                ) from None
            raise
        onnx_io.save(result.model, folder / MODEL_FILE)
        (folder / STEPS_FILE).write_text(json.dumps([asdict(step) for step in result.steps]))

    inputs = [str(spec) for spec in source.inputs]
    fingerprint = onnx_io.fingerprint(source.model)
    key = cache_key(source.name, fingerprint, opset=opset, skip=skip, inputs=inputs)
    entry = context.cache.get_or_make("prepare", key, make)
    model = onnx_io.load(entry.path / MODEL_FILE)
    records = json.loads((entry.path / STEPS_FILE).read_text())
    steps = tuple(clean.PassResult(**record) for record in records)
    # Two sources that differ only in their metadata share the cached graph.
    model.metadata_props.clear()
    model.metadata_props.update(source.model.metadata_props)
    changed = [f"{step.name}: {step.changed}" for step in steps if step.changed]
    dropped = [f"{step.name} left out" for step in steps if step.dropped]
    end(", ".join(changed + dropped) or "nothing to clean", entry.hit)
    return LoadedModel(source, model, entry.path / MODEL_FILE, steps)


def load_clean(path: Path, progress: ProgressCallback) -> LoadedModel:
    """Read a model whose graph is clean already."""
    end = start_step(progress, "load")
    source = sources.load(str(path), ExportConfig(), trust=False)
    end(str(path), False)
    return LoadedModel(source, source.model, path, ())


def crash_check_once(path: Path, graph: Path) -> None:
    """Run a file that takes the inputs of `graph` in a child process, unless it passed before."""
    model = onnx_io.load(graph)
    specs = onnx_io.inputs(model)
    can_run = not any(spec.has_dynamic_shape for spec in specs)
    feeds = random_inputs(specs, fixed_batch(specs) or 1, seed=0) if can_run else {}
    key = {
        "file": file_sha256(path),
        "graph": onnx_io.fingerprint(model),
        "onnxruntime": ORT_VERSION,
    }
    cache.open_default().get_or_make("rehearse", key, lambda _: check_for_crash(model, feeds, path))


def _runs(source: Source, batch: int) -> bool:
    try:
        open_cpu(source.model)(random_inputs(source.inputs, batch, seed=0))
    except QConvertError:
        return False
    return True
