"""The targets of `bench`, `evaluate` and `report`: a run, engines of runs, or ONNX files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert import backends
from qconvert.backends import system_probe
from qconvert.backends.base import INTEGER, Availability, Engine, Precision
from qconvert.core import onnx_io
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.graph.patterns import is_quantized
from qconvert.run import built_engines
from qconvert.run.load_model import crash_check_engines, crash_check_once
from qconvert.run.run_folder import (
    ENGINE_FILE,
    ENGINES,
    SETTINGS,
    RunFolder,
    require_no_outside_links,
)


@dataclass(frozen=True)
class Target:
    """Engines by name, and the run they all belong to, if it is one."""

    engines: Mapping[str, Engine]
    run: RunFolder | None

    @property
    def available(self) -> dict[str, Availability]:
        """The availability of each backend of the engines on this machine."""
        system = system_probe.detect()
        names = dict.fromkeys(engine.backend for engine in self.engines.values())
        return {name: backends.probe(name, system) for name in names}

    @property
    def runs_here(self) -> dict[str, bool]:
        """Whether each engine can run on this machine."""
        available = self.available
        return {name: available[engine.backend].runs for name, engine in self.engines.items()}

    @property
    def reference(self) -> Path:
        """The float model to compare with: that of the run, else the first file."""
        if self.run is None:
            name, first = next(iter(self.engines.items()))
            if first.precision in INTEGER:
                float_names = [
                    name for name, engine in self.engines.items() if engine.precision not in INTEGER
                ]
                raise UsageError(
                    f"`{name}` is quantized, and outputs are compared with those of a float model",
                    hint=f"name that first: `{(float_names or ['MODEL.onnx'])[0]} {name}`",
                )
        return self.model

    @property
    def model(self) -> Path:
        """The float model of a run, else the first file, whatever it is."""
        if self.run is not None:
            return self.run.model
        first = next(iter(self.engines.values()))
        return first.folder / first.graph


def resolve(paths: Sequence[Path]) -> Target:
    """Find the engines that paths name."""
    if not paths:
        raise UsageError("no target is named", hint="name a run, engines, or ONNX files")
    if len(paths) == 1 and (paths[0] / SETTINGS).is_file():
        return _resolve_run(RunFolder(paths[0]))
    engines: dict[str, Engine] = {}
    for path in paths:
        engine = _engine_at(path)
        engines[path.name if path.name not in engines else str(path)] = engine
    crash_check_engines(engines.values())
    return Target(engines, None)


def require_same_inputs(graphs: Mapping[str, Path]) -> None:
    """Raise for graphs that do not take the same images: their outputs cannot be compared."""
    inputs = {name: onnx_io.inputs(onnx_io.load(path)) for name, path in graphs.items()}
    first_name, first = next(iter(inputs.items()))
    for name, specs in inputs.items():
        if len(specs) != len(first) or not all(map(_take_same_images, specs, first)):
            left, right = (", ".join(f"`{spec}`" for spec in side) for side in (specs, first))
            raise UsageError(
                f"`{name}` takes {left}, and `{first_name}` takes {right}",
                hint="compare models of the same inputs, made from one another",
            )


def _take_same_images(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether the same image fits both; batches may differ, and a dynamic size fits any."""
    sizes = zip(a.shape[1:], b.shape[1:], strict=False)
    same = all(m == n for m, n in sizes if isinstance(m, int) and isinstance(n, int))
    return a.name == b.name and len(a.shape) == len(b.shape) and same


def _resolve_run(run: RunFolder) -> Target:
    require_no_outside_links(run.root)
    engines = {name: built_engines.read_engine(run.engine(name)).engine for name in run.engines()}
    if not engines:
        raise UsageError(
            f"`{run.root}` has no engines yet",
            hint=f"`qconvert build --from {run.root}` builds them",
        )
    crash_check_engines(engines.values())
    if run.model.is_file():
        crash_check_once(run.model, run.model)
    return Target(engines, run)


def _engine_at(path: Path) -> Engine:
    if (path / ENGINE_FILE).is_file():
        return built_engines.read_engine(path).engine
    if path.suffix == ".onnx" and path.is_file():
        tensors = list(onnx_io.all_tensors(onnx_io.load(path)))
        external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
        return Engine(
            backend="cpu",
            precision=_precision(path),
            folder=path.parent,
            graph=path.name,
            files=(path.name, *sorted({str(tensor.location) for tensor in external})),
            made_with={},
        )
    if (path / SETTINGS).is_file():
        raise UsageError(
            f"`{path}` is a run, and a run must be the only target",
            hint=f"to add others name its engines: `{path / ENGINES / 'NAME'}`",
        )
    raise UsageError(
        f"`{path}` is no run, no engine and no ONNX file",
        hint="name `RUN`, `RUN/engines/NAME` or `MODEL.onnx`",
    )


def _precision(path: Path) -> Precision:
    """Return the lowest precision of a graph."""
    model = onnx_io.load(path)
    if is_quantized(model):
        return "int8"
    types = {str(tensor.dtype) for tensor in onnx_io.all_tensors(model)}
    return "fp16" if "FLOAT16" in types else "bf16" if "BFLOAT16" in types else "fp32"
