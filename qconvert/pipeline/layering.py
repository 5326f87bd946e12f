"""The errors of a graph layer by layer, kept in the store by all that decides them."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pydantic

from qconvert import __version__, onnx_io
from qconvert.backends.ort import VERSION
from qconvert.feeds import Feeds, filled_up, fixed_batch
from qconvert.images.batch import Images
from qconvert.measure.layers import Layer, compare
from qconvert.pipeline.progress import Progress, Tell
from qconvert.quantize.equalize import equalized
from qconvert.quantize.found import factors_of
from qconvert.report.numerals import count
from qconvert.store import Store

FOUND = "layers.json"
# So many images tell the errors of layers to a tenth of a decibel; all are run thrice.
ENOUGH = 32
# Memory is all tensors of a batch; larger ones take more of it, and are no faster.
BATCH = 1
STEP = "compare"

ADAPTER = pydantic.TypeAdapter(tuple[Layer, ...])


@dataclass(frozen=True)
class Sample:
    """A few images, and the preprocessing of which they are the result."""

    images: Images
    preprocessing: dict[str, object]


@dataclass(frozen=True)
class Pair:
    """A graph and the one that it is held against; `name` is how it is told of."""

    name: str
    reference: Path
    graph: Path


def layers_of(pair: Pair, sample: Sample, store: Store, tell: Tell) -> tuple[Layer, ...]:
    """Return the errors of a graph against its reference, layer by layer."""
    started = time.perf_counter()
    reference, model = onnx_io.load(pair.reference), onnx_io.load(pair.graph)
    listing = sample.images.listing()
    ours, theirs = onnx_io.fingerprint(model), onnx_io.fingerprint(reference)
    recipe = {
        # Engines with the same graph have the same layers, whatever they are called.
        "name": f"graph {ours[:12]}",
        "model": theirs,
        "graph": ours,
        "images": listing.digest(),
        "preprocessing": json.dumps(sample.preprocessing, sort_keys=True),
        "qconvert": __version__,
        "onnxruntime": VERSION,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
    }

    def make(folder: Path) -> None:
        size = fixed_batch(onnx_io.inputs(reference))
        even = equalized(reference, factors_of(model))
        found = compare(even, model, _batches(sample.images, size, pair.name, tell))
        # Python's JSON has a word for infinity, which equal tensors need.
        told = json.dumps([asdict(each) for each in found], indent=1)
        (folder / FOUND).write_text(told, encoding="utf-8")

    kept = store.get(STEP, recipe, make)
    found = ADAPTER.validate_python(json.loads((kept.path / FOUND).read_text(encoding="utf-8")))
    size = fixed_batch(onnx_io.inputs(reference)) or 1
    ran = len(listing) // size * size or len(listing)
    text = f"{pair.name}: {count(len(found), 'layer')} on {count(ran, 'image')}"
    tell(Progress(STEP, text, time.perf_counter() - started, kept.stored))
    return found


def _batches(images: Images, fixed: int | None, name: str, tell: Tell) -> Iterator[Feeds]:
    """Yield the images in batches that the models take.

    Where the models fix the batch, images that do not make a whole one are left out, and fewer than
    one are repeated.
    """
    size, done, total = fixed or BATCH, 0, len(images.names)
    for batch in images.batches(size):
        count = len(batch.items)
        if fixed and count < fixed:
            if not done:
                yield filled_up(batch.feeds, fixed)
            return
        yield batch.feeds
        done += count
        tell(Progress(STEP, name, done=done, total=total))
