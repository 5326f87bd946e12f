"""Finished runs and engines: read by the paths that a user names, and opened to run them.

The folder of a run is untrusted: an engine is rejected unless it is what a build writes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pydantic
from numpy.typing import NDArray

from qconvert import backends, sources
from qconvert.backends import system_probe
from qconvert.backends.base import INTEGER, Availability, Engine, Session
from qconvert.core import onnx_io, run_files
from qconvert.core.cache import file_sha256
from qconvert.core.config import Config, ExportConfig
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.formats import Precision
from qconvert.core.tensors import Tensors, TensorSpec, fixed_batch
from qconvert.graph.patterns import activation_sign, is_quantized
from qconvert.images import ImageChoice
from qconvert.images.listing import Batch
from qconvert.report import gates, json_file
from qconvert.report.model import Report
from qconvert.run import run_folder
from qconvert.run.context import open_image_set
from qconvert.run.export import crash_check_once
from qconvert.sources import Source

_ENGINE_ADAPTER = pydantic.TypeAdapter(Engine)


def read_engine(folder: Path) -> Engine:
    """Return the engine in a folder; all its files must be in there."""
    try:
        record = json.loads((folder / run_folder.ENGINE_FILE).read_text(encoding="utf-8"))
        engine = _ENGINE_ADAPTER.validate_python({**record, "folder": folder})
        if engine.backend not in backends.BACKENDS:
            raise ValueError(f"there is no backend `{engine.backend}`")
        if not engine.files:
            raise ValueError("it lists no files")
        for name in (engine.graph, *engine.files):
            if not name or Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"`{name}` is not a file in it")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = first_line(error)
    else:
        return engine
    raise QConvertError(
        f"`{folder}` holds no engine: {reason}",
        hint="name a folder `RUN/engines/NAME` that `qconvert build` made, or an ONNX file",
    )


def engine_hashes(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Return everything that decides how each engine runs: its files and build options."""
    hashes = {}
    for name, engine in engines.items():
        files = [file_sha256(engine.folder / file)[:16] for file in engine.files]
        options = json.dumps({**engine.made_with, "run threads": engine.threads}, sort_keys=True)
        hashes[name] = " ".join([*files, options])
    return hashes


@dataclass(frozen=True)
class Target:
    """Engines by name, and the run they all belong to, if it is one."""

    engines: Mapping[str, Engine]
    run: run_folder.RunFolder | None

    @property
    def available(self) -> dict[str, Availability]:
        """Whether each engine can run on this machine."""
        system = system_probe.detect()
        names = {engine.backend for engine in self.engines.values()}
        backend = {name: backends.probe(name, system) for name in names}
        return {name: backend[engine.backend] for name, engine in self.engines.items()}

    @property
    def model(self) -> Path:
        """The float model of a run, else the first file, of any kind."""
        if self.run is not None:
            return self.run.model
        first = next(iter(self.engines.values()))
        return first.folder / first.graph

    @property
    def reference(self) -> Path:
        """The float model to compare with: that of the run, else the first file."""
        name, first = next(iter(self.engines.items()))
        if self.run is None and first.precision in INTEGER:
            floats = (name for name, row in self.engines.items() if row.precision not in INTEGER)
            raise UsageError(
                f"`{name}` is quantized, but the reference must be a float model",
                hint=f"name the float model first: `{next(floats, 'MODEL.onnx')} {name}`",
            )
        return self.model


def resolve(paths: Sequence[Path]) -> Target:
    """Find the engines that paths name: `RUN`, or any of `RUN/engines/NAME` and ONNX files."""
    if not paths:
        raise UsageError("no target is named", hint="name a run, engines, or ONNX files")
    is_run = len(paths) == 1 and (paths[0] / run_files.SETTINGS).is_file()
    run = run_folder.RunFolder(paths[0]) if is_run else None
    engines: dict[str, Engine] = {}
    if run is None:
        for path in paths:
            engines[path.name if path.name not in engines else str(path)] = _engine_at(path)
    else:
        run_folder.require_no_outside_links(run.root)
        engines = {name: read_engine(run.engine(name)) for name in run.engines()}
        if not engines:
            raise UsageError(
                f"`{run.root}` has no engines yet",
                hint=f"`qconvert build --from {run.root}` builds them",
            )
    for engine in engines.values():
        # The CPU loads the first of its files, which may differ from the graph.
        loaded = engine.files[:1] if engine.backend == "cpu" else ()
        for name in sorted({engine.graph, *loaded}):
            crash_check_once(engine.folder / name, engine.folder / engine.graph)
    if run is not None and run.model.is_file():
        crash_check_once(run.model, run.model)
    return Target(engines, run)


def resolve_engine(path: Path) -> Engine:
    """Find the one engine that a path names."""
    target = resolve([path])
    if target.run is not None:
        names = ", ".join(f"`{path / run_files.ENGINES / name}`" for name in target.engines)
        raise UsageError(f"`{path}` is a run, not an engine", hint=f"its engines: {names}")
    return next(iter(target.engines.values()))


def _engine_at(path: Path) -> Engine:
    if (path / run_folder.ENGINE_FILE).is_file():
        return read_engine(path)
    if (path / run_files.SETTINGS).is_file():
        raise UsageError(
            f"`{path}` is a run, and a run must be the only target",
            hint=f"to add others, name its engines: `{path / run_files.ENGINES / 'NAME'}`",
        )
    if path.suffix != ".onnx" or not path.is_file():
        raise UsageError(
            f"`{path}` is not a run, an engine or an ONNX file",
            hint="name `RUN`, `RUN/engines/NAME` or `MODEL.onnx`",
        )
    model = onnx_io.load(path)
    tensors = list(onnx_io.all_tensors(model))
    types = {str(tensor.dtype) for tensor in tensors}
    precision: Precision = "bf16" if "BFLOAT16" in types else "fp32"
    sign = activation_sign(model)
    if is_quantized(model):
        precision = "int8-dynamic" if sign == "at run time" else "int8"
    elif "FLOAT16" in types:
        precision = "fp16"
    external = {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    files = (path.name, *sorted(external))
    facts = {"activations": sign} if precision in INTEGER else {}
    return Engine("cpu", precision, path.parent, path.name, files, made_with=facts)


def require_same_inputs(graphs: Mapping[str, Path]) -> None:
    """Raise for graphs whose inputs differ in more than the batch or a dynamic size."""
    inputs = {name: onnx_io.inputs(onnx_io.load(path)) for name, path in graphs.items()}
    first_name, first = next(iter(inputs.items()))
    for name, specs in inputs.items():
        same = [(a.name, len(a.shape)) for a in specs] == [(b.name, len(b.shape)) for b in first]
        same = same and all(
            m == n or not (isinstance(m, int) and isinstance(n, int))
            for a, b in zip(specs, first, strict=True)
            for m, n in zip(a.shape[1:], b.shape[1:], strict=True)
        )
        if not same:
            left, right = (", ".join(f"`{spec}`" for spec in side) for side in (specs, first))
            raise UsageError(
                f"`{name}` takes {left}, and `{first_name}` takes {right}",
                hint="compare models with the same inputs, one made from the other",
            )


@dataclass(frozen=True)
class OpenEngine:
    """A loaded engine: call it with an array for each input; it returns one for each output."""

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
                hint="pass one array per input, by name",
            )
        arrays: dict[str, NDArray[Any]] = {}
        for spec in self.inputs:
            # The runtime checks neither byte order nor type nor shape.
            array = np.asarray(feeds[spec.name])
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            fits = array.ndim == len(spec.shape) and all(
                expected == size or not isinstance(expected, int)
                for expected, size in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or (array.dtype != spec.dtype and spec.dtype.kind in "fiub"):
                raise UsageError(
                    f"the engine takes `{spec}`, not "
                    f"`{TensorSpec(spec.name, array.dtype, array.shape)}`",
                    hint=f"pass an array of {spec.dtype} with these sizes; `engine.read(path)` "
                    "prepares one from image files",
                )
            arrays[spec.name] = array
        return self.session.run(arrays)

    def read(self, images: str | Path, batch: int = 1) -> Iterator[Batch]:
        """Yield images, or anything else that `--images` takes, in prepared batches."""
        if batch < 1:
            raise UsageError(f"a batch of {batch} is invalid", hint="1 or more images")
        chosen = open_image_set(self.source, Config(), ImageChoice(Path(images)))
        yield from chosen.batches(fixed_batch(self.inputs) or batch)


def open_engine(path: Path) -> OpenEngine:
    """Load `RUN/engines/NAME`, or an ONNX file, which runs on the CPU."""
    engine = resolve_engine(path)
    source = sources.load(str(engine.folder / engine.graph), ExportConfig())
    return OpenEngine(engine, backends.load(engine.backend).open(engine), source)


@dataclass(frozen=True)
class Run:
    """The folder of a run and its report; it can be used as the path of the folder."""

    folder: Path
    report: Report

    def __fspath__(self) -> str:
        return str(self.folder)

    def path(self, name: str = "") -> Path:
        """Return the folder of an engine: the one named, else the best one."""
        folder, chosen = run_folder.RunFolder(self.folder), name or self.report.best
        names = folder.engines()
        if chosen in names:
            return folder.engine(chosen)
        hint = f"it has {', '.join(f'`{name}`' for name in names) or 'none'}"
        if chosen:
            raise UsageError(f"`{self.folder}` has no engine `{chosen}`", hint=hint)
        raise UsageError(
            f"no engine of `{self.folder}` is named by the verdict, so name one",
            details=[gates.describe_gate(gate) for gate in self.report.gates if not gate.passed],
            hint=f"`--engine NAME`; {hint}",
        )

    def engine(self, name: str = "") -> OpenEngine:
        """Load an engine: the one named, else the best one."""
        return open_engine(self.path(name))

    def require_gates(self) -> None:
        """Raise `GateFailed` if a gate failed."""
        gates.require_passed(self.report)


def load_run(folder: Path) -> Run:
    """Return the run in a folder."""
    run_folder.RunFolder(folder).settings()
    return Run(folder, json_file.load(folder / run_folder.REPORT))
