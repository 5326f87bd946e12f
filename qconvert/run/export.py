"""The job `export`: from any source to one clean ONNX file with the same outputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.cache import file_sha256
from qconvert.core.errors import UsageError
from qconvert.core.progress import megabytes, start_step
from qconvert.core.tensors import Tensors, fixed_batch, random_inputs
from qconvert.graph.patterns import is_quantized
from qconvert.run.context import (
    JobContext,
    known_preprocessing,
    open_calibration_images,
    with_preprocessing,
)
from qconvert.run.load_model import load_and_clean
from qconvert.run.run_folder import require_output_file
from qconvert.sources import LoadedModel, parity

PARITY_BATCH = 3


@dataclass(frozen=True)
class Exported:
    """A clean ONNX file, its model, and the comparison of its outputs with those of the source."""

    path: Path
    loaded: LoadedModel
    parity: parity.Parity | None
    quantized: bool


def export(context: JobContext, out: Path) -> Exported:
    """Write the model of the settings as one clean ONNX file, checked against its source.

    Its metadata holds the preprocessing, if that is known.
    """
    if out.suffix != ".onnx":
        raise UsageError(f"`{out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`")
    require_output_file(out)
    loaded = load_and_clean(context)
    result = _check_parity(loaded, context)
    end = start_step(context.progress, "write")
    preprocess = known_preprocessing(loaded.source, context.config.preprocess)
    model = with_preprocessing(loaded.model, preprocess)
    onnx_io.save(model, out)
    opset = model.opset_imports.get("", 0)
    size = megabytes(onnx_io.saved_bytes(out))
    end(f"{out}, {size}, opset {opset}, sha256 {file_sha256(out)[:12]}", False)
    return Exported(out, loaded, result, is_quantized(loaded.model))


def _check_parity(loaded: LoadedModel, context: JobContext) -> parity.Parity | None:
    """Run the source and the ONNX file on the same images, or on random inputs without images."""
    if loaded.source.run is None:
        return None
    settings = context.config.export
    end = start_step(
        context.progress, "parity", "running PyTorch and ONNX Runtime on the same inputs"
    )
    inputs = _parity_inputs(loaded, context)
    result = parity.measure(loaded.source.run, open_cpu(loaded.model), inputs)
    if result.inputs < settings.parity_inputs:
        raise UsageError(
            f"only {result.inputs} inputs were compared; {settings.parity_inputs} are required",
            hint="give more images, or none to compare on random inputs",
        )
    parity.require(result, settings.parity_tolerance)
    kind = "images" if context.config.calibration.images else "inputs"
    end(f"ONNX against PyTorch on {result.inputs} {kind}: {result}", False)
    return result


def _parity_inputs(loaded: LoadedModel, context: JobContext) -> Iterator[Tensors]:
    """Yield single inputs and a batch: an export that fixes the batch is right for one size."""
    count, specs = context.config.export.parity_inputs, loaded.source.inputs
    fixed = fixed_batch(specs)
    if context.config.calibration.images is None:
        singles = count if fixed else count - PARITY_BATCH
        yield from (random_inputs(specs, 1, seed) for seed in range(singles))
        if not fixed:
            yield random_inputs(specs, PARITY_BATCH, seed=singles)
        return
    size = fixed or PARITY_BATCH
    for batch in open_calibration_images(loaded.source, context, count).batches(size):
        if not fixed or len(batch.items) == size:
            yield batch.feeds
