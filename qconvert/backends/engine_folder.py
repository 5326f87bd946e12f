"""The folder of an engine: a copy of its graph, and an ONNX file that names a compiled engine."""

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

DOMAIN = "com.microsoft"
OPERATOR = "EPContext"
# Whether an engine holds all nodes or one: RTX writes an engine for every node.
MAIN_CONTEXT = {"TensorrtExecutionProvider": 1, "NvTensorRTRTXExecutionProvider": 0}


@dataclass(frozen=True)
class EngineGraph:
    """The graph of an engine in its folder: the model, and the names of its files, ONNX first."""

    model: ir.Model
    folder: Path
    files: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH

    @property
    def bytes(self) -> int:
        """The size of the files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the graph."""
        return onnx_io.inputs(self.model)


def copy_graph(path: Path, folder: Path) -> EngineGraph:
    """Copy an ONNX file to `model.onnx`; above 2 GB its data becomes a second file."""
    model = onnx_io.load(path)
    target = folder / GRAPH
    with explain_write_errors(folder):
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in onnx_io.all_tensors(model)):
            onnx_io.save(model, target)  # the data file is named after the new ONNX file
        else:
            shutil.copyfile(path, target)
    return EngineGraph(model, folder, tuple(file.name for file in onnx_io.model_files(target)))


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise QConvertError(
            f"`{folder}` cannot be written: {error.strerror or first_line(error)}",
            hint="make room there, or choose another place with `-o`",
        ) from None


def wrap_engine(model: ir.Model, engine: str, provider: str) -> ir.Model:
    """Return a model of one EPContext node, whose provider loads an engine file beside the model.

    Inputs and outputs are those of `model`. Providers refuse paths outside the model's folder.
    """
    if engine.startswith("/") or ".." in engine:
        raise ValueError(f"an engine must lie beside its model, got {engine}")
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
