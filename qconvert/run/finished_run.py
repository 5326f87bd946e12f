"""A finished run and its engines, opened from Python."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert import backends, sources
from qconvert.backends.base import Engine, Session
from qconvert.core import onnx_io
from qconvert.core.config import ExportConfig, PreprocessConfig
from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, TensorSpec, fixed_batch
from qconvert.images import ImageChoice
from qconvert.images.batches import Batch
from qconvert.report import gates, json_file
from qconvert.report.model import Report
from qconvert.run.context import open_image_set
from qconvert.run.run_folder import ENGINES, REPORT, RunFolder
from qconvert.run.targets import resolve
from qconvert.sources import Source


@dataclass(frozen=True)
class OpenEngine:
    """A loaded engine. Call it with an array for each input; it returns one for each output.

    `inputs` and `outputs` are names, types and shapes; `source` is the graph it was built from.
    """

    engine: Engine
    session: Session
    source: Source

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a call needs."""
        return self.source.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that a call returns."""
        return onnx_io.outputs(self.source.model)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once."""
        if not isinstance(feeds, Mapping) or set(feeds) != {spec.name for spec in self.inputs}:
            names = list(feeds) if isinstance(feeds, Mapping) else [type(feeds).__name__]
            received = ", ".join(f"`{name}`" for name in names) or "nothing"
            expected = ", ".join(f"`{spec}`" for spec in self.inputs)
            raise UsageError(
                f"the engine takes {expected}, not {received}",
                hint="one array an input, by its name",
            )
        return self.session.run({spec.name: _native_array(spec, feeds) for spec in self.inputs})

    def read(self, images: str | Path, batch: int = 1) -> Iterator[Batch]:
        """Yield images in batches, prepared as they were for calibration and evaluation.

        `images` is an image, a folder, or anything else that `--images` takes. An engine with a
        fixed batch gets that.
        """
        if batch < 1:
            raise UsageError(f"a batch of {batch} is invalid", hint="1 or more images")
        image_set = open_image_set(self.source, ImageChoice(Path(images)), PreprocessConfig())
        yield from image_set.images.batches(fixed_batch(self.inputs) or batch)


@dataclass(frozen=True)
class Run:
    """The folder of a run and its report; it can be used as the path of the folder.

    From Python the folder is absolute, so that it survives a change of the working directory.
    """

    folder: Path
    report: Report

    def __fspath__(self) -> str:
        return str(self.folder)

    def chosen(self, name: str = "") -> str:
        """Return the name of an engine of the run: the one named, else the best one."""
        names = RunFolder(self.folder).engines()
        chosen = name or self.report.best
        if chosen in names:
            return chosen
        hint = f"it has {', '.join(f'`{name}`' for name in names) or 'none'}"
        if chosen:
            raise UsageError(f"`{self.folder}` has no engine `{chosen}`", hint=hint)
        raise UsageError(f"no engine of `{self.folder}` is the best, so name one", hint=hint)

    def path(self, name: str = "") -> Path:
        """Return the folder of an engine: the one named, else the best one."""
        return RunFolder(self.folder).engine(self.chosen(name))

    def engine(self, name: str = "") -> OpenEngine:
        """Load an engine: the one named, else the best one."""
        return open_engine(self.path(name))

    def require_gates(self) -> None:
        """Raise `GateFailed` if a gate failed."""
        gates.require_passed(self.report)


def load_run(folder: Path) -> Run:
    """Return the run in a folder."""
    RunFolder(folder).settings()
    return Run(folder, json_file.load(folder / REPORT))


def open_engine(path: Path) -> OpenEngine:
    """Load `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    target = resolve([path])
    if target.run is not None:
        names = ", ".join(f"`{path / ENGINES / name}`" for name in target.engines)
        raise UsageError(f"`{path}` is a run, not an engine", hint=f"its engines: {names}")
    (engine,) = target.engines.values()
    source = sources.load(str(engine.folder / engine.graph), ExportConfig())
    return OpenEngine(engine, backends.load(engine.backend).open(engine), source)


def _native_array(spec: TensorSpec, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return an array in this machine's byte order; raise unless its type and shape fit.

    The runtime does not check.
    """
    array = np.asarray(feeds[spec.name])
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    fits = array.ndim == len(spec.shape) and all(
        expected == size or not isinstance(expected, int)
        for expected, size in zip(spec.shape, array.shape, strict=True)
    )
    if fits and (array.dtype == spec.dtype or spec.dtype.kind not in "fiub"):
        return array
    received = TensorSpec(spec.name, array.dtype, array.shape)
    raise UsageError(
        f"the engine takes `{spec}`, not `{received}`",
        hint=f"pass an array of {spec.dtype} with these sizes; `engine.read(path)` prepares one "
        "from image files",
    )
