"""An engine at work: arrays in, arrays out, and pictures as it wants them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert import backends, sources
from qconvert.backends.base import Engine, Session
from qconvert.core import onnx_io
from qconvert.core.config import Config, ExportConfig
from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, TensorSpec, fixed_batch
from qconvert.images import ImageChoice, open_images
from qconvert.images.batches import Batch
from qconvert.report import gates, json_file
from qconvert.report.model import Report
from qconvert.run import job_images
from qconvert.run.run_folder import ENGINES, REPORT, RunFolder
from qconvert.run.targets import resolve
from qconvert.sources import Source


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

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once."""
        if not isinstance(feeds, Mapping) or set(feeds) != {spec.name for spec in self.inputs}:
            names = list(feeds) if isinstance(feeds, Mapping) else [type(feeds).__name__]
            given = ", ".join(f"`{name}`" for name in names) or "nothing"
            wanted = ", ".join(f"`{spec}`" for spec in self.inputs)
            raise UsageError(
                f"the engine takes {wanted}, not {given}", hint="one array an input, by its name"
            )
        return self.session.run(
            {spec.name: _require_fitting_array(spec, feeds) for spec in self.inputs}
        )

    def read(self, images: str | Path, batch: int = 1) -> Iterator[Batch]:
        """Yield pictures in batches, prepared as they were for calibration and evaluation.

        `images` is a picture, a folder, or all else that `--images` may be. An engine with a fixed
        batch gets that.
        """
        if batch < 1:
            raise UsageError(f"there is no batch of {batch}", hint="1 or more images")
        chosen = job_images.preprocessing_or_default(self.source, Config())
        found = open_images(ImageChoice(Path(images)), self.inputs, chosen)
        yield from found.batches(fixed_batch(self.inputs) or batch)


def _require_fitting_array(spec: TensorSpec, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
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
    source = sources.load(str(engine.folder / engine.graph), ExportConfig())
    return OpenEngine(engine, backends.load(engine.backend).open(engine), source)


@dataclass(frozen=True)
class Run:
    """The folder of a run and its report; it stands for the folder wherever a path is wanted.

    From Python the folder is absolute: a run stays what it is where the program goes elsewhere.
    """

    folder: Path
    report: Report

    def __fspath__(self) -> str:
        return str(self.folder)

    def chosen(self, name: str = "") -> str:
        """Return the name of an engine that is there: the one named, else that of the verdict."""
        there = RunFolder(self.folder).engines()
        wanted = name or self.report.best
        if wanted in there:
            return wanted
        hint = f"it has {', '.join(f'`{each}`' for each in there) or 'none'}"
        if wanted:
            raise UsageError(f"`{self.folder}` has no engine `{wanted}`", hint=hint)
        raise UsageError(
            f"no engine of `{self.folder}` came out best, so one must be named", hint=hint
        )

    def path(self, name: str = "") -> Path:
        """Return the folder of an engine: the one named, else that of the verdict."""
        return RunFolder(self.folder).engine(self.chosen(name))

    def engine(self, name: str = "") -> OpenEngine:
        """Load an engine: the one named, else that of the verdict."""
        return open_engine(self.path(name))

    def require_gates(self) -> None:
        """Raise `GateFailed` where a gate failed."""
        gates.require_passed(self.report)


def load_run(folder: Path) -> Run:
    """Return the run that lies in a folder."""
    RunFolder(folder).settings()
    return Run(folder, json_file.load(folder / REPORT))
