"""A tiny model in the current folder, calibrated on drawn images."""

from pathlib import Path

from qconvert.core import config_file
from qconvert.core.cache import Cache
from qconvert.run.calibrate import measure_calibration_set
from qconvert.run.context import JobContext
from qconvert.run.export import load_and_clean
from qconvert.run.variants import BuildInputs
from tests import models
from tests.conftest import write
from tests.image_files import draw_images
from tests.models import from_text


def write_tiny_model(batch: str = "batch") -> Path:
    """Write the tiny model with this batch size as `m.onnx`."""
    values = models.tiny().graph.initializers.values()
    weights = {str(value.name): value.const_value.numpy() for value in values if value.const_value}
    return write(from_text(models.TINY.replace("batch", batch), **weights), Path("m.onnx"))


def make_context(images: str | None = "images", *, exact: bool = False) -> JobContext:
    """Return the context of a job on `m.onnx`."""
    settings = {"model": "m.onnx", "calibration.images": images, "calibration.exact": exact}
    return JobContext(config_file.load(None, settings), Cache(Path(".store")))


def calibrated_inputs(batch: str = "batch", images: int = 24) -> tuple[BuildInputs, JobContext]:
    """Return the inputs of a build: the tiny model, calibrated on drawn images."""
    write_tiny_model(batch)
    draw_images(Path("images"), images, 8)
    context = make_context()
    loaded = load_and_clean(context)
    return BuildInputs(loaded, measure_calibration_set(loaded, context)), context
