"""An engine at work: arrays in, arrays out, and pictures as it wants them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert import backends, onnx_io, sources
from qconvert.backends.base import Engine, Session
from qconvert.config import Config, Export
from qconvert.errors import UsageError
from qconvert.feeds import Feeds, TensorSpec, fixed_batch
from qconvert.images import ImageChoice, open_images
from qconvert.images.batch import Batch
from qconvert.pipeline import pictures
from qconvert.pipeline.run_folder import ENGINES
from qconvert.pipeline.targets import resolve
from qconvert.sources.source import Source


@dataclass(frozen=True)
class OpenEngine:
    """A loaded engine. Call it with an array for each input: it answers with one for each output.

    `inputs` and `outputs` say their names, types and shapes; `source` is the graph it was made of.
    """

    engine: Engine
    session: Session
    source: Source

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the engine is fed."""
        return self.source.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it answers with."""
        return onnx_io.outputs(self.source.model)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Feeds:
        """Run once."""
        if not isinstance(feeds, Mapping) or set(feeds) != {spec.name for spec in self.inputs}:
            names = list(feeds) if isinstance(feeds, Mapping) else [type(feeds).__name__]
            given = ", ".join(f"`{name}`" for name in names) or "nothing"
            wanted = ", ".join(f"`{spec}`" for spec in self.inputs)
            raise UsageError(
                f"the engine takes {wanted}, not {given}", hint="one array an input, by its name"
            )
        return self.session.run({spec.name: _fitting(spec, feeds) for spec in self.inputs})

    def read(self, images: str | Path, batch: int = 1) -> Iterator[Batch]:
        """Yield pictures in batches, prepared as they were for calibration and evaluation.

        `images` is a picture, a folder, or all else that `--images` may be. An engine with a fixed
        batch gets that.
        """
        if batch < 1:
            raise UsageError(f"there is no batch of {batch}", hint="1 or more images")
        chosen = pictures.preprocessing_or_usual(self.source, Config())
        found = open_images(ImageChoice(Path(images)), self.inputs, chosen)
        yield from found.batches(fixed_batch(self.inputs) or batch)


def _fitting(spec: TensorSpec, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return an array as the engine can take it; the runtime believes what it is given."""
    array = np.asarray(feeds[spec.name])
    # Bytes in another machine's order have the same type, and would be read as other numbers.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    fits = array.ndim == len(spec.shape) and all(
        wanted == size or not isinstance(wanted, int)
        for wanted, size in zip(spec.shape, array.shape, strict=True)
    )
    if fits and (array.dtype == spec.dtype or spec.dtype.kind not in "fiub"):
        return array
    given = TensorSpec(spec.name, array.dtype, array.shape)
    raise UsageError(
        f"the engine takes `{spec}`, not `{given}`",
        hint=f"an array of {spec.dtype} with these sizes; `read` makes such of pictures",
    )


def open_engine(path: Path) -> OpenEngine:
    """Load `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    found = resolve([path])
    if found.run is not None:
        names = ", ".join(f"`{path / ENGINES / name}`" for name in found.engines)
        raise UsageError(f"`{path}` is a run, not an engine", hint=f"its engines: {names}")
    (engine,) = found.engines.values()
    source = sources.load(str(engine.folder / engine.graph), Export())
    return OpenEngine(engine, backends.load(engine.backend).open(engine), source)
