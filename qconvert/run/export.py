"""From a source to one clean ONNX file that says the same."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.cache import Cache, file_sha256
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.core.progress import Progress, ProgressCallback, megabytes
from qconvert.core.tensors import Tensors, fixed_batch, random_inputs
from qconvert.graph.patterns import is_quantized
from qconvert.run import job_images, load_model
from qconvert.run.run_folder import require_output_file
from qconvert.sources import LoadedModel, parity

PARITY_BATCH = 3


@dataclass(frozen=True)
class Exported:
    """A clean ONNX file and how it came to be."""

    path: Path
    config: Config
    loaded: LoadedModel
    parity: parity.Parity | None
    quantized: bool


def export(
    config: Config, out: Path, store: Cache, tell: ProgressCallback, *, trust: bool
) -> Exported:
    """Turn `config.model` into one clean ONNX file at `out`, checked against its source."""
    if out.suffix != ".onnx":
        raise UsageError(f"`{out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`")
    require_output_file(out)
    done = load_model.load_and_clean(config, store, tell, trust=trust)
    checked = _check_parity(done, config, tell)
    _write(done, config, out, tell)
    return Exported(out, config, done, checked, is_quantized(done.model))


def _check_parity(
    done: LoadedModel, config: Config, tell: ProgressCallback
) -> parity.Parity | None:
    """Run the source and the clean ONNX on the same images, or on random inputs without any."""
    if done.source.run is None:
        return None
    tell(Progress("parity", "running PyTorch and ONNX Runtime on the same inputs"))
    started = time.perf_counter()
    found = parity.measure(done.source.run, open_cpu(done.model), _parity_inputs(done, config))
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


def _parity_inputs(done: LoadedModel, config: Config) -> Iterator[Tensors]:
    """Yield single inputs and a batch: an export that fixes the batch is right for one size."""
    count, specs = config.export.parity_inputs, done.source.inputs
    fixed = fixed_batch(specs)
    if config.calibration.images is None:
        singles = count if fixed else count - PARITY_BATCH
        yield from (random_inputs(specs, 1, seed) for seed in range(singles))
        if not fixed:
            yield random_inputs(specs, PARITY_BATCH, seed=singles)
        return
    images = job_images.open_calibration_images(done.source, config, count)
    size = fixed or PARITY_BATCH
    for batch in images.batches(size):
        if not fixed or len(batch.items) == size:
            yield batch.feeds


def _write(done: LoadedModel, config: Config, out: Path, tell: ProgressCallback) -> None:
    """Write the model; the preprocessing goes with it where it is known."""
    started = time.perf_counter()
    model = job_images.with_preprocessing(
        done.model, job_images.known_preprocessing(done.source, config)
    )
    onnx_io.save(model, out)
    opset = model.opset_imports.get("", 0)
    size = sum(file.stat().st_size for file in onnx_io.model_files(out))
    text = f"{out}, {megabytes(size)}, opset {opset}, sha256 {file_sha256(out)[:12]}"
    tell(Progress("write", text, time.perf_counter() - started))
