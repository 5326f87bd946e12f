"""A small model that is calibrated on drawn images, as a candidate for quantization."""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qconvert.core import config_file
from qconvert.core.cache import Cache
from qconvert.core.progress import ProgressCallback, ignore_progress
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.optimize.candidate import Candidate
from qconvert.quantize.cross_layer import equalize
from qconvert.quantize.placement import QuantizeOptions
from qconvert.run.calibrate import measure_calibration_set
from qconvert.run.context import JobContext
from qconvert.run.export import load_and_clean
from qconvert.sources import LoadedModel
from tests.conftest import write
from tests.image_files import draw_images
from tests.quantize.quantized_models import scheme
from tests.tasks import task_models

CACHE = Cache(Path(".cache"))
SETTINGS = {"model": "net.onnx", "calibration.images": "images"}


def candidate_of(
    model: ir.Model,
    backend: str = "tensorrt",
    images: int = 40,
    progress: ProgressCallback = ignore_progress,
) -> Candidate:
    """Write a model and images into this folder, and calibrate the model on them."""
    write(model, Path("net.onnx"))
    draw_images(Path("images"), images, 16)
    loaded = load_and_clean(JobContext(config_file.load(None, SETTINGS), CACHE))
    return Candidate(loaded, calibrate(loaded), scheme(backend), QuantizeOptions(), 40, progress)


def calibrate(loaded: LoadedModel) -> CalibrationSet:
    return measure_calibration_set(loaded, JobContext(config_file.load(None, SETTINGS), CACHE))


def scene_candidate(model: ir.Model, squares: int | None = None) -> Candidate:
    """Return a candidate for a network of `task_models`, calibrated on 40 of its scenes."""
    write(model, Path("net.onnx"))
    task_models.write_scenes(Path("images"), 40, squares=squares)
    settings = {**SETTINGS, "preprocess.preset": "unit"}
    context = JobContext(config_file.load(None, settings), CACHE)
    loaded = load_and_clean(context)
    calibration = measure_calibration_set(loaded, context)
    options = QuantizeOptions()
    return Candidate(loaded, calibration, scheme("cpu"), options, 40, ignore_progress)


def equalized_candidate(original: Candidate, factors: dict[str, tuple[float, ...]]) -> Candidate:
    """Return a candidate for the equalized model, which is calibrated on the same images."""
    loaded = replace(original.loaded, model=equalize(original.loaded.model, factors))
    return replace(original, loaded=loaded, calibration=calibrate(loaded), factors=factors)
