"""From a source to one clean ONNX file that says the same."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qconvert import onnx_io
from qconvert.backends.ort import open_cpu
from qconvert.config import Config
from qconvert.errors import UsageError
from qconvert.feeds import Feeds, draw, fixed_batch
from qconvert.graph.patterns import is_quantized
from qconvert.pipeline import pictures, prepared
from qconvert.pipeline.place import require_place
from qconvert.pipeline.prepared import Prepared, megabytes
from qconvert.pipeline.progress import Progress, Tell
from qconvert.sources import parity
from qconvert.store import Store, digest

TOGETHER = 3


@dataclass(frozen=True)
class Exported:
    """A clean ONNX file and how it came to be."""

    path: Path
    config: Config
    prepared: Prepared
    parity: parity.Parity | None
    quantized: bool


def export(config: Config, out: Path, store: Store, tell: Tell, *, trust: bool) -> Exported:
    """Turn `config.model` into one clean ONNX file at `out`, checked against its source."""
    if out.suffix != ".onnx":
        raise UsageError(f"`{out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`")
    require_place(out)
    done = prepared.load(config, store, tell, trust=trust)
    checked = _check(done, config, tell)
    _write(done, config, out, tell)
    return Exported(out, config, done, checked, is_quantized(done.model))


def _check(done: Prepared, config: Config, tell: Tell) -> parity.Parity | None:
    """Run the source and the clean ONNX on the same images, or on random inputs without any."""
    if done.source.run is None:
        return None
    tell(Progress("parity", "running PyTorch and ONNX Runtime on the same inputs"))
    started = time.perf_counter()
    found = parity.measure(done.source.run, open_cpu(done.model), _inputs(done, config))
    if found.inputs < config.export.parity_inputs:
        raise UsageError(
            f"only {found.inputs} inputs were compared; {config.export.parity_inputs} are needed",
            hint="give more images, or none: then random inputs are compared",
        )
    parity.require(found, config.export.parity_tolerance)
    kind = "images" if config.calibration.images else "inputs"
    text = f"ONNX against PyTorch on {found.inputs} {kind}: {found}"
    tell(Progress("parity", text, time.perf_counter() - started))
    return found


def _inputs(done: Prepared, config: Config) -> Iterator[Feeds]:
    """Yield single inputs and a batch: an export that fixes the batch is right for one size."""
    count, specs = config.export.parity_inputs, done.source.inputs
    fixed = fixed_batch(specs)
    if config.calibration.images is None:
        singles = count if fixed else count - TOGETHER
        yield from (draw(specs, 1, seed) for seed in range(singles))
        if not fixed:
            yield draw(specs, TOGETHER, seed=singles)
        return
    images = pictures.open_for(done.source, config, count)
    size = fixed or TOGETHER
    for batch in images.batches(size):
        if not fixed or len(batch.items) == size:
            yield batch.feeds


def _write(done: Prepared, config: Config, out: Path, tell: Tell) -> None:
    """Write the model; the preprocessing goes with it where it is known."""
    started = time.perf_counter()
    model = pictures.signed(done.model, pictures.preprocessing(done.source, config))
    onnx_io.save(model, out)
    opset = model.opset_imports.get("", 0)
    size = sum(file.stat().st_size for file in onnx_io.files(out))
    text = f"{out}, {megabytes(size)}, opset {opset}, sha256 {digest(out)[:12]}"
    tell(Progress("write", text, time.perf_counter() - started))
