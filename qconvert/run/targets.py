"""What `bench`, `evaluate` and `report` are pointed at: a run, engines of runs, or ONNX files."""

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
        """What each backend of the engines says of this machine."""
        here = system_probe.detect()
        names = dict.fromkeys(engine.backend for engine in self.engines.values())
        return {name: backends.probe(name, here) for name in names}

    @property
    def reference(self) -> Path:
        """The model that answers are held against: the float model of a run, else the first.

        A model of integers is no such thing, and refused.
        """
        if self.run is not None:
            return self.run.model
        name, first = next(iter(self.engines.items()))
        if first.precision in INTEGER:
            floats = [n for n, each in self.engines.items() if each.precision not in INTEGER]
            raise UsageError(
                f"`{name}` is quantized, and answers are held against a float model",
                hint=f"name that first: `{(floats or ['MODEL.onnx'])[0]} {name}`",
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
        raise UsageError("nothing is named", hint="name a run, engines, or ONNX files")
    if len(paths) == 1 and (paths[0] / SETTINGS).is_file():
        run = RunFolder(paths[0])
        require_no_outside_links(run.root)
        found = {name: built_engines.read_engine(run.engine(name)).engine for name in run.engines()}
        if not found:
            raise UsageError(
                f"`{paths[0]}` has no engines yet",
                hint=f"`qconvert build --from {paths[0]}` builds them",
            )
        crash_check_engines(found.values())
        if run.model.is_file():
            crash_check_once(run.model, run.model)
        return Target(found, run)
    engines: dict[str, Engine] = {}
    for path in paths:
        engine = _engine_at(path)
        name = path.name if path.name not in engines else str(path)
        engines[name] = engine
    crash_check_engines(engines.values())
    return Target(engines, None)


def require_same_inputs(graphs: Mapping[str, Path]) -> None:
    """Refuse graphs that do not take the same images: their answers compare with nothing."""
    taken = {name: onnx_io.inputs(onnx_io.load(path)) for name, path in graphs.items()}
    first, specs = next(iter(taken.items()))
    for name, others in taken.items():
        if len(others) != len(specs) or not all(map(_take_same_images, others, specs)):
            ours, theirs = (", ".join(f"`{each}`" for each in some) for some in (others, specs))
            raise UsageError(
                f"`{name}` takes {ours}, and `{first}` takes {theirs}",
                hint="compare models of the same inputs, made from one another",
            )


def _take_same_images(ours: TensorSpec, theirs: TensorSpec) -> bool:
    """Whether the same image fits both; batches may differ, and an open size fits any."""
    sizes = zip(ours.shape[1:], theirs.shape[1:], strict=False)
    same = all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
    return ours.name == theirs.name and len(ours.shape) == len(theirs.shape) and same


def _engine_at(path: Path) -> Engine:
    if (path / ENGINE_FILE).is_file():
        return built_engines.read_engine(path).engine
    if path.suffix == ".onnx" and path.is_file():
        return Engine(
            backend="cpu",
            precision=_precision(path),
            folder=path.parent,
            graph=path.name,
            files=(path.name, *_external_data(path)),
            made_with={},
        )
    if (path / SETTINGS).is_file():
        raise UsageError(
            f"`{path}` is a run, and a run is named alone",
            hint=f"beside others name its engines: `{path / ENGINES / 'NAME'}`",
        )
    raise UsageError(
        f"`{path}` is no run, no engine and no ONNX file",
        hint="name `RUN`, `RUN/engines/NAME` or `MODEL.onnx`",
    )


def _external_data(path: Path) -> list[str]:
    """Return the names of the files in which a model keeps its weights."""
    stored = (each for each in onnx_io.all_tensors(onnx_io.load(path)))
    return sorted({str(each.location) for each in stored if isinstance(each, ir.ExternalTensor)})


def _precision(path: Path) -> Precision:
    """Return the least precision that a graph holds."""
    model = onnx_io.load(path)
    if is_quantized(model):
        return "int8"
    kinds = {str(tensor.dtype) for tensor in onnx_io.all_tensors(model)}
    return "fp16" if "FLOAT16" in kinds else "bf16" if "BFLOAT16" in kinds else "fp32"
