"""The jobs, each a few steps in a row; finished steps come from the store."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from qconvert import __version__, onnx_io, sources
from qconvert.backends.ort import open_cpu
from qconvert.config import Config
from qconvert.errors import QConvertError, UsageError
from qconvert.feeds import draw
from qconvert.graph import prepare as preparing
from qconvert.graph.patterns import is_quantized
from qconvert.sources import parity
from qconvert.sources.source import Source
from qconvert.store import Store, digest

MODEL = "model.onnx"
STEPS = "steps.json"
LIBRARIES = ("onnx", "onnx-ir", "onnxslim")


@dataclass(frozen=True)
class Progress:
    """A step that starts (`seconds` is None) or one that ended, with what it made."""

    step: str
    text: str
    seconds: float | None = None
    stored: bool = False


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Exported:
    """A clean ONNX file and how it came to be."""

    path: Path
    source: Source
    model: ir.Model
    steps: tuple[preparing.Step, ...]
    parity: parity.Parity | None
    quantized: bool


def export(config: Config, out: Path, store: Store, tell: Tell, *, trust: bool) -> Exported:
    """Turn `config.model` into one clean ONNX file at `out`, checked against its source."""
    assert config.model is not None
    preparing.require_known(config.prepare.skip)
    _require_place(out)
    source = _load(config, tell, trust=trust)
    model, steps = _prepare(source, config, store, tell)
    checked = _check(source, model, config, tell)
    _write(model, out, tell)
    return Exported(out, source, model, steps, checked, is_quantized(model))


def _load(config: Config, tell: Tell, *, trust: bool) -> Source:
    tell(Progress("load", f"reading {config.model}"))
    started = time.perf_counter()
    source = sources.load(str(config.model), config.export, trust=trust)
    size = onnx_io.weight_bytes(source.model)
    text = f"{config.model}: {len(source.model.graph)} nodes, {_megabytes(size)} of weights"
    tell(Progress("load", "\n".join([text, *source.notes]), time.perf_counter() - started))
    return source


def _prepare(
    source: Source, config: Config, store: Store, tell: Tell
) -> tuple[ir.Model, tuple[preparing.Step, ...]]:
    """Clean the graph, or take the clean graph of the same bytes, passes and library versions."""
    tell(Progress("prepare", "cleaning the graph"))
    started = time.perf_counter()
    opset, skip = config.export.opset, config.prepare.skip
    feeds = draw(source.inputs, 2, seed=0)

    def make(folder: Path) -> None:
        done = preparing.prepare(source.model, opset, skip, lambda model: open_cpu(model)(feeds))
        onnx_io.save(done.model, folder / MODEL)
        (folder / STEPS).write_text(json.dumps([asdict(step) for step in done.steps]))

    recipe = {
        "model": onnx_io.fingerprint(source.model),
        "name": source.name,
        "opset": str(opset),
        "skip": ",".join(skip),
        "feeds": ", ".join(str(spec) for spec in source.inputs),
        "qconvert": __version__,
        **{name: version(name) for name in LIBRARIES},
    }
    stored = store.find("prepare", recipe) is not None
    folder = store.get("prepare", recipe, make)
    model = onnx_io.load(folder / MODEL)
    steps = tuple(preparing.Step(**step) for step in json.loads((folder / STEPS).read_text()))
    tell(Progress("prepare", _told(steps), time.perf_counter() - started, stored))
    return model, steps


def _told(steps: tuple[preparing.Step, ...]) -> str:
    changed = [f"{step.name}: {step.changed}" for step in steps if step.changed]
    dropped = [f"{step.name} left out" for step in steps if step.dropped]
    return ", ".join(changed + dropped) or "nothing to clean"


def _check(source: Source, model: ir.Model, config: Config, tell: Tell) -> parity.Parity | None:
    if source.run is None:
        return None
    tell(Progress("parity", "running PyTorch and ONNX Runtime on the same inputs"))
    started = time.perf_counter()
    count = config.export.parity_inputs
    feeds = [draw(source.inputs, 1, seed) for seed in range(count)]
    found = parity.measure(source.run, open_cpu(model), feeds)
    parity.require(found, config.export.parity_tolerance)
    tell(Progress("parity", f"ONNX against PyTorch: {found}", time.perf_counter() - started))
    return found


def _write(model: ir.Model, out: Path, tell: Tell) -> None:
    started = time.perf_counter()
    onnx_io.save(model, out)
    opset = model.opset_imports.get("", 0)
    size = sum(file.stat().st_size for file in onnx_io.files(out))
    text = f"{out}, {_megabytes(size)}, opset {opset}, sha256 {digest(out)[:12]}"
    tell(Progress("write", text, time.perf_counter() - started))


def _require_place(out: Path) -> None:
    """Refuse a place that cannot be written before any long work."""
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=f"name the file: `-o {out / 'model.onnx'}`")
    if out.suffix != ".onnx":
        raise UsageError(f"`{out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        probe = out.parent / f".{out.name}.writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise QConvertError(
            f"`{out.parent}` cannot be written: {error.strerror}",
            hint="choose another place with `-o`",
        ) from None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
