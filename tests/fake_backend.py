"""A backend for tests of what stands above backends: the engine is the graph, run on the CPU."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.backends.base import (
    Availability,
    BuildSpec,
    Coverage,
    Engine,
    Heard,
    Session,
    Wants,
)
from qconvert.backends.folder import GRAPH
from qconvert.backends.installed import Installed
from qconvert.backends.ort import open_cpu
from qconvert.backends.outside import Loading, Served
from qconvert.feeds import Feeds
from qconvert.quantize.scheme import Scheme
from qconvert.scales import Grid

PROVIDER = "FakeExecutionProvider"


@dataclass(frozen=True)
class FakeSession:
    """Runs the model of an engine."""

    model: ir.Model
    threads: int = 0

    def run(self, feeds: Feeds) -> Feeds:
        return open_cpu(self.model, self.threads)(feeds)

    def bound(self, feeds: Feeds) -> Callable[[], None] | None:
        return None

    def coverage(self) -> Coverage:
        return Coverage({PROVIDER: len(self.model.graph)}, None, "the fake has no kernels")


def probe(installed: Installed) -> Availability:
    return Availability(builds=True, runs=True, version="fake 1")


def wants() -> Wants:
    return Wants(Scheme("fake", Grid(8), Grid(8), integer_bias=False, rules=()))


def recipe(spec: BuildSpec) -> Mapping[str, str]:
    options = {name: str(value) for name, value in spec.options.items()}
    return {"backend": "fake", "precision": spec.precision, **options}


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Take it."""


def build(graph: Path, spec: BuildSpec, folder: Path, heard: Heard) -> Engine:
    heard("copying", 0.0)
    shutil.copyfile(graph, folder / GRAPH)
    heard("copied", 1.0)
    return Engine("fake", spec.precision, folder, GRAPH, (GRAPH,), recipe(spec), spec.threads)


def open(engine: Engine) -> Session:
    return FakeSession(onnx_io.load(engine.folder / engine.files[0]), engine.threads)


def loading(engine: Engine) -> Loading:
    return Loading(((PROVIDER, {}),), ("onnxruntime",))


def served(engine: Engine) -> Served:
    return Served("onnxruntime_onnx", engine.graph, "CPU")
