"""Why engines err: the graphs of a run against the float model, on a few images."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qconvert.errors import QConvertError
from qconvert.images import ImageChoice, open_images
from qconvert.images.reading import Reading
from qconvert.measure.layers import Layer
from qconvert.pipeline import pictures
from qconvert.pipeline.graphs import Basis, Graph
from qconvert.pipeline.layering import ENOUGH, Pair, Sample, layers_of
from qconvert.pipeline.variants import Variant
from qconvert.pipeline.workshop import Workshop

NO_IMAGES = "no images to run: give `--eval PATH`, or `--images PATH`"
FLOAT_GRAPH = "its graph is that of the float model: the engine's builder chooses what it rounds"


@dataclass(frozen=True)
class Analysis:
    """The layers of every engine whose graph is not the float model's, or why it has none."""

    layers: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    sample: Sample | None = None


def analyse(graphs: Mapping[Variant, Graph], base: Basis, shop: Workshop) -> Analysis:
    """Return what can be told of the graphs; one that cannot be run so keeps nothing else back."""
    layers: dict[str, tuple[Layer, ...]] = {}
    unknown: dict[str, str] = {}
    sample = sample_of(base, shop)
    for variant, graph in graphs.items():
        if variant.precision == "fp32":
            continue
        if sample is None:
            unknown[variant.name] = NO_IMAGES
            continue
        pair = Pair(variant.precision, shop.run.model, graph.path)
        try:
            found = layers_of(pair, sample, shop.store, shop.tell)
        except QConvertError as error:
            unknown[variant.name] = str(error)
            continue
        if all(each.precision == "fp32" for each in found):
            unknown[variant.name] = FLOAT_GRAPH
        else:
            layers[variant.name] = found
    return Analysis(layers, unknown, sample)


def sample_of(base: Basis, shop: Workshop) -> Sample | None:
    """Return some of the images that answers are compared on, else of those for calibration."""
    config = shop.config
    paths = (config.evaluate.images, config.calibration.images)
    path = next((each for each in paths if each is not None and each.exists()), None)
    if path is None:
        return None
    source = base.ready.source
    known = pictures.preprocessing_or_usual(source, config)
    choice = ImageChoice(path, ENOUGH, seed=config.calibration.seed)
    reading = Reading(max_broken=config.calibration.max_broken)
    images = open_images(choice, source.inputs, known, reading)
    return Sample(images, pictures.settled_or_none(source, config))
