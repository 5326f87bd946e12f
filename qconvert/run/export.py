"""The job `export`: from any source to one clean ONNX file; every other job starts with it too."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert import sources
from qconvert.backends.crash_check import check_for_crash
from qconvert.backends.ort import open_cpu
from qconvert.core import cache, onnx_io
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import megabytes, start_step
from qconvert.core.tensors import RunModel, Tensors, fixed_batch, random_inputs
from qconvert.graph import clean
from qconvert.graph.patterns import is_quantized
from qconvert.run.context import JobContext, cache_key, open_calibration_images, with_preprocessing
from qconvert.run.run_folder import require_output_file
from qconvert.sources import MODEL_FILE, LoadedModel, Source

PARITY_BATCH = 3
# Scores closer than this share of the largest output are a tie: either class is right.
TIE = 1e-5
STEPS_CODEC = cache.JsonCodec("steps.json", tuple[clean.PassResult, ...])


@dataclass(frozen=True)
class Parity:
    """The largest error of any output, and how many of the `rows` of scores have the same class.

    Without an output of scores, `same_top1` and `rows` are the number of inputs.
    """

    inputs: int
    max_abs: float
    max_rel: float
    same_top1: int
    rows: int
    has_top1: bool
    worst: str

    def __str__(self) -> str:
        top1 = f"top-1 {self.same_top1}/{self.rows}, " if self.has_top1 else ""
        return f"{top1}relative error {self.max_rel:.1e}"


@dataclass(frozen=True)
class Exported:
    """A clean ONNX file, its model, and the comparison of its outputs with those of the source."""

    path: Path
    loaded: LoadedModel
    parity: Parity | None
    quantized: bool


def export(context: JobContext, out: Path) -> Exported:
    """Write the model and its preprocessing as one clean ONNX file, checked against its source."""
    if out.suffix != ".onnx":
        raise UsageError(f"`{out}` does not end in .onnx", hint="name the file `-o MODEL.onnx`")
    require_output_file(out)
    loaded, result = load_and_clean(context), None
    if loaded.source.run is not None:
        result = _check_parity(loaded.source.run, loaded, context)
    end = start_step(context.progress, "write")
    model = with_preprocessing(loaded, context.config.preprocess).model
    onnx_io.save(model, out)
    opset = model.opset_imports.get("", 0)
    size = megabytes(onnx_io.saved_bytes(out))
    end(f"{out}, {size}, opset {opset}, sha256 {cache.file_sha256(out)[:12]}", False)
    return Exported(out, loaded, result, is_quantized(loaded.model))


def _check_parity(run: RunModel, loaded: LoadedModel, context: JobContext) -> Parity:
    """Run the source and the ONNX file on the same images, or on random inputs without images."""
    settings, text = context.config.export, "running PyTorch and ONNX Runtime on the same inputs"
    end = start_step(context.progress, "parity", text)
    result = measure_parity(run, open_cpu(loaded.model), _parity_inputs(loaded, context))
    if result.inputs < settings.parity_inputs:
        raise UsageError(
            f"only {result.inputs} inputs were compared; {settings.parity_inputs} are required",
            hint="give more images, or none to compare on random inputs",
        )
    require_parity(result, settings.parity_tolerance)
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


def measure_parity(reference: RunModel, candidate: RunModel, feeds: Iterable[Tensors]) -> Parity:
    """Run both on every input and compare all outputs."""
    count = 0
    runs: list[tuple[Tensors, Tensors]] = []
    for batch in feeds:
        count += next((len(array) for array in batch.values() if array.ndim), 1)
        runs.append((reference(batch), candidate(batch)))
    if not runs:
        raise QConvertError(
            "there are no inputs on which to compare PyTorch and ONNX",
            hint="give at least one full batch of images",
        )
    results = {}
    for name in runs[0][0]:
        for _, outputs in runs:
            if name not in outputs:
                raise QConvertError(
                    f"the exported ONNX has no output `{name}`; it has {sorted(outputs)}",
                    hint="the network must return the same outputs for every input",
                )
        results[name] = _compare([(expected[name], outputs[name]) for expected, outputs in runs])
    worst = max(results, key=lambda name: results[name][1])
    # An output without rows, as of a detector that found nothing, has no classes either.
    agreements = [rows for _, _, rows in results.values() if rows is not None and rows.size]
    everywhere = np.ones(count, np.bool_)
    agrees = min(agreements, key=lambda rows: float(rows.mean()), default=everywhere)
    return Parity(
        inputs=count,
        max_abs=max(error for error, _, _ in results.values()),
        max_rel=results[worst][1],
        same_top1=int(agrees.sum()),
        rows=agrees.size,
        has_top1=bool(agreements),
        worst=worst,
    )


def require_parity(parity: Parity, tolerance: float) -> None:
    """Refuse an export that computes something other than the original."""
    if parity.max_rel <= tolerance and parity.same_top1 == parity.rows:
        return
    items = "inputs" if parity.rows == parity.inputs else "rows"
    top1 = f"top-1 agrees on {parity.same_top1} of {parity.rows} {items}, "
    raise QConvertError(
        f"the outputs of the exported ONNX differ from PyTorch's: {top1 if parity.has_top1 else ''}"
        f"largest error {parity.max_abs:.2g} ({parity.max_rel:.1e} of the largest value) in "
        f"`{parity.worst}`",
        hint="the usual cause is a branch that depends on data, or a layer that still draws random "
        "numbers; `--parity-tolerance` sets a looser limit",
    )


def _compare(
    pairs: list[tuple[NDArray[Any], NDArray[Any]]],
) -> tuple[float, float, NDArray[np.bool_] | None]:
    """Return the largest error of an output, absolute and relative to the largest finite value.

    Infinities and NaN must be equal. For scores, also whether each row has the same class.
    """
    if any(expected.shape != actual.shape for expected, actual in pairs):
        return np.inf, np.inf, None
    a, b = (
        np.concatenate([np.ravel(array) for array in arrays]).astype(np.float64)
        for arrays in zip(*pairs, strict=True)
    )
    finite = np.isfinite(a)
    largest, error = float(np.abs(a[finite]).max(initial=0.0)), np.inf
    if np.array_equal(np.where(finite, 0.0, a), np.where(np.isfinite(b), 0.0, b), equal_nan=True):
        error = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    relative = error / largest if largest else (np.inf if error else 0.0)
    if not all(x.ndim == 2 and x.shape[1] > 1 and x.dtype.kind == "f" for x, _ in pairs):
        return error, relative, None
    agrees = []
    for pair in pairs:
        a, b = (  # NaN is never chosen
            np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
            for scores in pair
        )
        chosen = a[np.arange(len(a)), b.argmax(axis=1)]
        agrees.append(chosen >= a.max(axis=1) - TIE * largest)
    return error, relative, np.concatenate(agrees)


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
        STEPS_CODEC.save(result.steps, folder)

    inputs = [str(spec) for spec in source.inputs]
    fingerprint = onnx_io.fingerprint(source.model)
    key = cache_key(source.name, fingerprint, opset=opset, skip=skip, inputs=inputs)
    entry, hit = context.cache.get_or_make("prepare", key, make)
    model, steps = onnx_io.load(entry / MODEL_FILE), STEPS_CODEC.load(entry)
    # Two sources that differ only in their metadata share the cached graph.
    model.metadata_props.clear()
    model.metadata_props.update(source.model.metadata_props)
    changed = [f"{step.name}: {step.changed}" for step in steps if step.changed]
    dropped = [f"{step.name} left out" for step in steps if step.dropped]
    end(", ".join(changed + dropped) or "nothing to clean", hit)
    return LoadedModel(source, model, entry / MODEL_FILE, steps)


def crash_check_once(path: Path, graph: Path) -> None:
    """Run a file that takes the inputs of `graph` in a child process, unless it passed before."""
    model = onnx_io.load(graph)
    specs = onnx_io.inputs(model)
    can_run = not any(spec.has_dynamic_shape for spec in specs)
    feeds = random_inputs(specs, fixed_batch(specs) or 1, seed=0) if can_run else {}
    key = cache_key(path.name, onnx_io.fingerprint(model), file=cache.file_sha256(path))
    cache.open_default().get_or_make("rehearse", key, lambda _: check_for_crash(model, feeds, path))


def _runs(source: Source, batch: int) -> bool:
    try:
        open_cpu(source.model)(random_inputs(source.inputs, batch, seed=0))
    except QConvertError:
        return False
    return True
