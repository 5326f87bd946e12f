"""The first steps of every job: read the source, and clean its graph or take it from the store."""

import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from qconvert import __version__, onnx_io, sources
from qconvert.backends.ort import VERSION, open_cpu
from qconvert.backends.rehearsal import rehearse
from qconvert.config import Config, Export
from qconvert.errors import QConvertError
from qconvert.feeds import draw, fixed_batch
from qconvert.graph import prepare as preparing
from qconvert.pipeline.progress import Progress, Tell
from qconvert.sources.source import Source
from qconvert.store import Store

MODEL = "model.onnx"
STEPS = "steps.json"
LIBRARIES = ("onnx", "onnx-ir", "onnxslim", "numpy")


@dataclass(frozen=True)
class Prepared:
    """A source, its clean graph (in the store at `path`), and what cleaned it."""

    source: Source
    model: ir.Model
    path: Path
    steps: tuple[preparing.Step, ...]


def load(config: Config, store: Store, tell: Tell, *, trust: bool) -> Prepared:
    """Read `config.model` and clean it."""
    preparing.require_known(config.prepare.skip)
    source = _read(config, tell, trust=trust)
    return _clean(source, config, store, tell)


def as_it_is(path: Path, tell: Tell) -> Prepared:
    """Read a model that is clean already."""
    started = time.perf_counter()
    source = sources.load(str(path), Export(), trust=False)
    tell(Progress("load", f"{path}", time.perf_counter() - started))
    return Prepared(source, source.model, path, ())


def _read(config: Config, tell: Tell, *, trust: bool) -> Source:
    tell(Progress("load", f"reading {config.model}"))
    started = time.perf_counter()
    source = sources.load(str(config.model), config.export, trust=trust)
    size = onnx_io.weight_bytes(source.model)
    text = f"{config.model}: {len(source.model.graph)} nodes, {megabytes(size)} of weights"
    tell(Progress("load", "\n".join([text, *source.notes]), time.perf_counter() - started))
    return source


def _clean(source: Source, config: Config, store: Store, tell: Tell) -> Prepared:
    """Clean the graph, or take the clean graph of the same bytes, passes and library versions."""
    tell(Progress("prepare", "cleaning the graph"))
    started = time.perf_counter()
    opset, skip = config.export.opset, config.prepare.skip
    feeds = draw(source.inputs, 2, seed=0)

    def make(folder: Path) -> None:
        if source.run is None:
            rehearse(source.model, feeds)
        try:
            done = preparing.prepare(
                source.model, opset, skip, lambda model: open_cpu(model)(feeds)
            )
        except QConvertError as error:
            raise _why(error, source) from None
        onnx_io.save(done.model, folder / MODEL)
        (folder / STEPS).write_text(json.dumps([asdict(step) for step in done.steps]))

    recipe = {
        "model": onnx_io.fingerprint(source.model),
        "name": source.name,
        "opset": str(opset),
        "skip": ",".join(skip),
        "inputs": ", ".join(str(spec) for spec in source.inputs),
        "qconvert": __version__,
        "onnxruntime": VERSION,
        **{name: version(name) for name in LIBRARIES},
    }
    found = store.get("prepare", recipe, make)
    path = found.path / MODEL
    model = onnx_io.load(path)
    # Two sources that differ in nothing else share the stored graph.
    model.metadata_props.clear()
    model.metadata_props.update(source.model.metadata_props)
    steps = tuple(preparing.Step(**step) for step in json.loads((found.path / STEPS).read_text()))
    tell(Progress("prepare", _told(steps), time.perf_counter() - started, found.stored))
    return Prepared(source, model, path, steps)


def _why(error: QConvertError, source: Source) -> QConvertError:
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
        open_cpu(source.model)(draw(source.inputs, batch, seed=0))
    except QConvertError:
        return False
    return True


def megabytes(size: int) -> str:
    """Write a size as people do."""
    return f"{size / 1e6:.1f} MB"


def _told(steps: tuple[preparing.Step, ...]) -> str:
    changed = [f"{step.name}: {step.changed}" for step in steps if step.changed]
    dropped = [f"{step.name} left out" for step in steps if step.dropped]
    return ", ".join(changed + dropped) or "nothing to clean"
