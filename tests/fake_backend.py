"""A backend for tests of the layers above backends: its engine is the graph, run on the CPU."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert.backends.base import (
    GRAPH,
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Coverage,
    Engine,
    LoadSpec,
    Session,
    TritonSpec,
)
from qconvert.backends.ort import open_cpu
from qconvert.backends.system_probe import Installed
from qconvert.core import onnx_io
from qconvert.core.scales import Grid
from qconvert.core.tensors import Tensors
from qconvert.quantize.scheme import Scheme

PROVIDER = "FakeExecutionProvider"


@dataclass(frozen=True)
class FakeSession:
    """Runs the model of an engine."""

    model: ir.Model
    threads: int = 0

    def run(self, feeds: Tensors) -> Tensors:
        return open_cpu(self.model, self.threads)(feeds)

    def bind(self, feeds: Tensors) -> None:
        return None

    def coverage(self) -> Coverage:
        return Coverage({PROVIDER: len(self.model.graph)}, None, "the fake has no kernels")


def probe(installed: Installed) -> Availability:
    return Availability(builds=True, runs=True, version="fake 1")


def requirements() -> BackendRequirements:
    scheme = Scheme("fake", Grid(8), Grid(8), integer_bias=False, rules=())
    return BackendRequirements({"int8": scheme})


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    options = {name: str(value) for name, value in spec.options.items()}
    return {"backend": "fake", "precision": spec.precision, **options}


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Accept any graph."""


def build(graph: Path, spec: BuildSpec, folder: Path, progress: BuildProgressCallback) -> Engine:
    progress("copying", 0.0)
    shutil.copyfile(graph, folder / GRAPH)
    progress("copied", 1.0)
    return Engine("fake", spec.precision, folder, GRAPH, (GRAPH,), cache_key(spec), spec.threads)


def open(engine: Engine) -> Session:
    return FakeSession(onnx_io.load(engine.folder / engine.files[0]), engine.threads)


def load_spec(engine: Engine) -> LoadSpec:
    return LoadSpec(((PROVIDER, {}),), ("onnxruntime",))


def triton_spec(engine: Engine) -> TritonSpec:
    return TritonSpec("onnxruntime_onnx", engine.graph, "CPU")
