"""The images a job runs on, prepared as the user, or else the source, says."""

import json
from typing import Any

import onnx_ir as ir

from qconvert.config import Config, Preprocessing
from qconvert.errors import QConvertError, UsageError
from qconvert.images import ImageChoice, open_images
from qconvert.images.batch import Images
from qconvert.images.preprocess import PRESETS, Preprocess, fit
from qconvert.images.reading import Reading
from qconvert.images.target import picture_input
from qconvert.sources.onnx_file import PREPROCESS
from qconvert.sources.source import Source

USUAL = "imagenet"


def open_for(source: Source, config: Config, count: int, threads: int | None = None) -> Images:
    """Return at most `count` of the images that the settings name, as inputs of the source."""
    if config.calibration.images is None:
        raise UsageError("there are no images", hint="name a folder: `--images PATH`")
    choice = ImageChoice(config.calibration.images, count, seed=config.calibration.seed)
    reading = Reading(workers=threads, max_broken=config.calibration.max_broken)
    chosen = preprocessing_or_usual(source, config)
    return open_images(choice, source.inputs, chosen, reading)


def preprocessing(source: Source, config: Config) -> Preprocess | None:
    """Return what is known: the preset asked for, else the source's own, and the single settings.

    None where neither the user nor the source says anything.
    """
    given = _given(config.preprocess)
    base = PRESETS[config.preprocess.preset] if config.preprocess.preset else source.preprocess
    if base is None and not given:
        return None
    chosen = Preprocess.from_dict({**(base or PRESETS[USUAL]).to_dict(), **given})
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


def _given(settings: Preprocessing) -> dict[str, Any]:
    names = ("resize", "crop", "interpolation", "mean", "std", "colours")
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def signed(model: ir.Model, known: Preprocess | None) -> ir.Model:
    """Return a model with what is done to its pictures written into it, where that is known."""
    if known is None:
        return model
    model = model.clone()
    model.metadata_props[PREPROCESS] = json.dumps(known.to_dict(), sort_keys=True)
    return model


def preprocessing_or_usual(source: Source, config: Config) -> Preprocess:
    """Return what is known of the preprocessing, or else what is usual."""
    return preprocessing(source, config) or PRESETS[USUAL]


def settled_or_none(source: Source, config: Config) -> dict[str, Any]:
    """Return the settled preprocessing as plain values, nothing for inputs that are no pictures."""
    try:
        return settled(source, config).to_dict()
    except QConvertError:
        return {}


def settled(source: Source, config: Config) -> Preprocess:
    """Return the preprocessing of pictures for this source, every size and value settled."""
    chosen = preprocessing_or_usual(source, config)
    return fit(chosen, picture_input(source.inputs))[0]
