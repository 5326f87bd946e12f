"""The folder of an engine: its graph copied in whole, trouble with the disk in one sentence."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, first_line
from qconvert.core.tensors import TensorSpec

GRAPH = "model.onnx"


@dataclass(frozen=True)
class EngineGraph:
    """The graph of an engine in its folder: the model, and its files by name, it itself first."""

    model: ir.Model
    folder: Path
    files: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the ONNX file is."""
        return self.folder / GRAPH

    @property
    def bytes(self) -> int:
        """The bytes of the files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the graph must be fed."""
        return onnx_io.inputs(self.model)


def copy_graph(graph: Path, folder: Path) -> EngineGraph:
    """Copy an ONNX file to `model.onnx`: one file, or above 2 GB one and its data beside it."""
    model = onnx_io.load(graph)
    target = folder / GRAPH
    with explain_write_errors(folder):
        if any(isinstance(each, ir.ExternalTensor) for each in onnx_io.all_tensors(model)):
            onnx_io.save(model, target)  # the data gets a name that belongs to the new file
        else:
            shutil.copyfile(graph, target)
    return EngineGraph(model, folder, tuple(path.name for path in onnx_io.model_files(target)))


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Say in one sentence what keeps a file from being written."""
    try:
        yield
    except OSError as error:
        raise QConvertError(
            f"`{folder}` cannot be written: {error.strerror or first_line(error)}",
            hint="make room there, or choose another place with `-o`",
        ) from None


DOMAIN = "com.microsoft"
OPERATOR = "EPContext"

# Providers differ in what they write themselves: RTX gives every node an engine of its own.
MAIN_CONTEXT = {"TensorrtExecutionProvider": 1, "NvTensorRTRTXExecutionProvider": 0}


def wrap_engine(model: ir.Model, engine: str, provider: str) -> ir.Model:
    """Return a model with the inputs and outputs of another, computed by an engine file beside it.

    Providers load engines from the model's own folder or below, and refuse any other path.
    """
    if engine.startswith("/") or ".." in engine:
        raise ValueError(f"an engine lies beside its model, got {engine}")
    inputs = [_copy(value) for value in model.graph.inputs]
    outputs = [_copy(value) for value in model.graph.outputs]
    attributes: dict[str, int | str] = {
        "main_context": MAIN_CONTEXT[provider],
        "embed_mode": 0,
        "ep_cache_context": engine,
        "source": provider,
        "onnx_model_filename": GRAPH,
        "partition_name": "engine",
    }
    node = ir.node(OPERATOR, inputs, attributes, domain=DOMAIN, outputs=outputs, name="engine")
    opsets = {"": model.opset_imports.get("", 20), DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="engine")
    return ir.Model(graph, ir_version=model.ir_version, producer_name="qconvert")


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type)
