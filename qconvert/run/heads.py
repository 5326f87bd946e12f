"""How boxes or masks are read from the outputs of a run that was not scored."""

from dataclasses import replace

from qconvert import sources
from qconvert.core import cache
from qconvert.core.config import ExportConfig
from qconvert.measure.comparison import MAX_OPEN_BATCHES
from qconvert.run.context import EVALUATION_BATCH, JobContext, open_sample
from qconvert.run.export import crash_check_once
from qconvert.run.prediction_runs import PredictionRuns
from qconvert.run.run_folder import RunFolder
from qconvert.tasks.heads import Head


def find_head(folder: RunFolder) -> Head | None:
    """Return how FP32's outputs for the first images with objects are read, if they are decoded.

    A function of the user is not called: the folder of a run may be from someone else.
    """
    settings = folder.settings()
    if ":" in settings.evaluate.decode:
        return None
    settings = replace(settings, evaluate=replace(settings.evaluate, metric=""))
    crash_check_once(folder.model, folder.model)
    source = sources.load(str(folder.model), ExportConfig())
    context = JobContext(settings, cache.open_default())
    images = open_sample(source, context, EVALUATION_BATCH * MAX_OPEN_BATCHES)
    if images is None:
        return None
    reading = PredictionRuns(folder.model, {}, {}).choose_reading(images, context)
    return reading.head if reading is not None else None
