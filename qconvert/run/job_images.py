"""The images a job runs on, prepared as the user, or else the source, says."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qconvert.core.config import Config, PreprocessConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.images import ImageChoice, open_images
from qconvert.images.batches import Images
from qconvert.images.image_files import ReadOptions
from qconvert.images.preprocess import PRESETS, Preprocess, find_image_input, fit_to_input
from qconvert.run.run_folder import RunContext
from qconvert.run.variants import BuildInputs
from qconvert.sources import Source
from qconvert.sources.onnx_file import PREPROCESS_KEY

EVALUATION_BATCH = 8

DEFAULT_PRESET = "imagenet"


def open_calibration_images(
    source: Source, config: Config, count: int, threads: int | None = None
) -> Images:
    """Return at most `count` of the images that the settings name, as inputs of the source."""
    if config.calibration.images is None:
        raise UsageError("there are no images", hint="name a folder: `--images PATH`")
    choice = ImageChoice(config.calibration.images, count, seed=config.calibration.seed)
    reading = ReadOptions(workers=threads, max_broken=config.calibration.max_broken)
    chosen = preprocessing_or_default(source, config)
    return open_images(choice, source.inputs, chosen, reading)


def known_preprocessing(source: Source, config: Config) -> Preprocess | None:
    """Return what is known: the preset asked for, else the source's own, and the single settings.

    None where neither the user nor the source says anything.
    """
    given = _explicit_settings(config.preprocess)
    base = PRESETS[config.preprocess.preset] if config.preprocess.preset else source.preprocess
    if base is None and not given:
        return None
    chosen = Preprocess.from_dict({**(base or PRESETS[DEFAULT_PRESET]).to_dict(), **given})
    _require_scaled(chosen)
    return chosen


def _require_scaled(chosen: Preprocess) -> None:
    """Refuse numbers of pixels from 0 to 255 where pixels go from 0 to 1."""
    if chosen.divisor > 1 and (max(chosen.mean) > 1 or max(chosen.std) > 2):
        number = max(*chosen.mean, *chosen.std)
        raise UsageError(
            f"`mean` and `std` are of pixels from 0 to 1, and {number:g} is none",
            hint=f"write {number:g}/255, or take `--preprocess raw` for pixels from 0 to 255",
        )


def _explicit_settings(settings: PreprocessConfig) -> dict[str, Any]:
    names = ("resize", "crop", "interpolation", "mean", "std", "colours")
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def with_preprocessing(model: ir.Model, known: Preprocess | None) -> ir.Model:
    """Return a model with what is done to its pictures written into it, where that is known."""
    if known is None:
        return model
    model = model.clone()
    model.metadata_props[PREPROCESS_KEY] = json.dumps(known.to_dict(), sort_keys=True)
    return model


def preprocessing_or_default(source: Source, config: Config) -> Preprocess:
    """Return what is known of the preprocessing, or else what is usual."""
    return known_preprocessing(source, config) or PRESETS[DEFAULT_PRESET]


def fitted_preprocessing_or_empty(source: Source, config: Config) -> dict[str, Any]:
    """Return the settled preprocessing as plain values, nothing for inputs that are no pictures."""
    try:
        return fitted_preprocessing(source, config).to_dict()
    except QConvertError:
        return {}


def fitted_preprocessing(source: Source, config: Config) -> Preprocess:
    """Return the preprocessing of pictures for this source, every size and value settled."""
    chosen = preprocessing_or_default(source, config)
    return fit_to_input(chosen, find_image_input(source.inputs))[0]


def open_evaluation_set(
    base: BuildInputs, shop: RunContext, workers: int | None, *, resumed: bool
) -> "EvaluationSet | None":
    """Open the images, if there are any.

    A run that goes on elsewhere does without those of the other machine.
    """
    config, source = shop.config, base.loaded.source
    chosen = config.evaluate
    if chosen.images is None or (resumed and not chosen.images.exists()):
        return None
    choice = ImageChoice(chosen.images, chosen.count, chosen.labels, config.calibration.seed)
    known = preprocessing_or_default(source, config)
    reading = ReadOptions(workers, config.calibration.max_broken)
    images = open_images(choice, source.inputs, known, reading)
    return EvaluationSet(shop.folder.model, images, fitted_preprocessing_or_empty(source, config))


@dataclass(frozen=True)
class EvaluationSet:
    """The FP32 model, the images, and what was done to them: the same for every engine."""

    model: Path
    images: Images
    preprocessing: Mapping[str, object]

    def digest(self) -> str:
        """Return one hash over all that decides what is asked: images, labels, preprocessing."""
        used = self.images.manifest()
        decided = [used.digest(), list(self.images.labels), dict(self.preprocessing)]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
