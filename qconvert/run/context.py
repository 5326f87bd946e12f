"""The context of a job: settings, cache, progress callback, and images as the settings say."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION
from qconvert.core import cache, user_code
from qconvert.core.cache import Cache
from qconvert.core.config import Config, EvaluateConfig, PreprocessConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import ProgressCallback, ignore_progress
from qconvert.images import ImageChoice, open_images
from qconvert.images.listing import Images
from qconvert.images.preprocess import PRESETS, Preprocess, find_image_input, fit_to_input
from qconvert.run.run_folder import RunFolder
from qconvert.sources import LoadedModel, Source
from qconvert.sources.onnx_file import PREPROCESS_KEY
from qconvert.tasks import own_metric, user_decoder
from qconvert.tasks.decoders import AUTO
from qconvert.tasks.reading import TaskRequest

# With qconvert and ONNX Runtime these decide the numbers of every step.
LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxslim", "pillow")
DEFAULT_PRESET = "imagenet"
# The images of an evaluation batch, where the model takes any number.
EVALUATION_BATCH = 8


@dataclass(frozen=True)
class JobContext:
    """The context of a job; `trust` allows a checkpoint to run the code it contains."""

    config: Config
    cache: Cache
    progress: ProgressCallback = ignore_progress
    trust: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class RunContext(JobContext):
    """The context of a job that works in the folder of a run."""

    folder: RunFolder = field(kw_only=True)


def open_context(
    config: Config,
    progress: ProgressCallback = ignore_progress,
    *,
    trust: bool = False,
    fresh: bool = False,
) -> JobContext:
    """Return the context of a job with the user's cache; `fresh` recomputes everything."""
    return JobContext(config, cache.open_default(fresh=fresh), progress, trust=trust)


def cache_key(name: str, model: str, **decisive: object) -> dict[str, str]:
    """Return what decides the result of a step; `name` and `model` identify it in listings."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in decisive.items()
    }
    versions = {library: version(library) for library in LIBRARIES}
    versions |= {"qconvert": __version__, "onnxruntime": ORT_VERSION}
    return {"name": name, "model": model, **texts, **versions}


def open_image_set(source: Source, config: Config, choice: ImageChoice) -> Images:
    """Open images as inputs of a model, prepared, chosen and skipped as the settings say."""
    calibration, settings = config.calibration, config.preprocess
    choice = replace(choice, seed=calibration.seed, max_broken=calibration.max_broken)
    images = open_images(choice, source.inputs, preprocessing_or_default(source, settings))
    return replace(images, preprocessing=fitted_preprocessing(source, settings))


def open_evaluation_set(
    source: Source, context: JobContext, workers: int | None = None
) -> Images | None:
    """Open the evaluation images of the settings, if there are any."""
    settings = context.config.evaluate
    if settings.images is None:
        return None
    choice = ImageChoice(settings.images, settings.count, settings.labels, threads=workers)
    return open_image_set(source, context.config, choice)


def task_request(settings: EvaluateConfig) -> TaskRequest:
    """Return what the settings say of the network's task."""
    return TaskRequest(settings.task, settings.decode or AUTO, settings.metric)


def own_code(settings: EvaluateConfig) -> str:
    """Return a hash of the files of the user's own functions, which decide results too."""
    sources = {settings.decode: user_decoder.PURPOSE, settings.metric: own_metric.PURPOSE}
    return user_code.file_hash({name: text for name, text in sources.items() if ":" in name})


def open_sample(source: Source, context: JobContext, count: int) -> Images | None:
    """Open a few of the evaluation images, else of the calibration images, if there are any."""
    for path in (context.config.evaluate.images, context.config.calibration.images):
        if path is not None and path.exists():
            return open_image_set(source, context.config, ImageChoice(path, count))
    return None


def open_calibration_images(
    source: Source, context: JobContext, count: int, threads: int | None = None
) -> Images:
    """Open at most `count` of the calibration images of the settings."""
    path = context.config.calibration.images
    if path is None:
        raise UsageError("there are no images", hint="name a folder: `--images PATH`")
    return open_image_set(source, context.config, ImageChoice(path, count, threads=threads))


def known_preprocessing(source: Source, settings: PreprocessConfig) -> Preprocess | None:
    """Return the preset of the settings, else that of the source, changed by other settings."""
    changes = {name: value for name, value in asdict(settings).items() if value is not None}
    changes.pop("preset", None)
    base = PRESETS[settings.preset] if settings.preset else source.preprocess
    if base is None and not changes:
        return None
    preprocess = Preprocess.from_dict({**(base or PRESETS[DEFAULT_PRESET]).to_dict(), **changes})
    if preprocess.divisor > 1 and (max(preprocess.mean) > 1 or max(preprocess.std) > 2):
        number = max(*preprocess.mean, *preprocess.std)
        raise UsageError(
            f"`mean` and `std` are for pixels from 0 to 1, and {number:g} is out of range",
            hint=f"write {number:g}/255, or use `--preprocess raw` for pixels from 0 to 255",
        )
    return preprocess


def preprocessing_or_default(source: Source, settings: PreprocessConfig) -> Preprocess:
    """Return the known preprocessing, else that of ImageNet."""
    return known_preprocessing(source, settings) or PRESETS[DEFAULT_PRESET]


def fitted_preprocessing(source: Source, settings: PreprocessConfig) -> dict[str, Any]:
    """Return the preprocessing with every size and value; empty if the inputs are not images."""
    try:
        image_input = find_image_input(source.inputs)
        return fit_to_input(preprocessing_or_default(source, settings), image_input)[0].to_dict()
    except QConvertError:
        return {}


def with_preprocessing(
    loaded: LoadedModel, settings: PreprocessConfig, calibrated: Mapping[str, object] | None = None
) -> LoadedModel:
    """Return the model with its preprocessing in the metadata: as `calibrated`, else if known."""
    source = loaded.source
    preprocess = (
        Preprocess.from_dict(calibrated) if calibrated else known_preprocessing(source, settings)
    )
    if preprocess is None:
        return loaded
    model = loaded.model.clone()
    model.metadata_props[PREPROCESS_KEY] = json.dumps(preprocess.to_dict(), sort_keys=True)
    return replace(loaded, model=model)
