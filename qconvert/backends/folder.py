"""The folder of an engine: its graph copied in whole, trouble with the disk in one sentence."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.errors import QConvertError, reason
from qconvert.feeds import TensorSpec

GRAPH = "model.onnx"


@dataclass(frozen=True)
class Kept:
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


def keep(graph: Path, folder: Path) -> Kept:
    """Copy an ONNX file to `model.onnx`: one file, or above 2 GB one and its data beside it."""
    model = onnx_io.load(graph)
    target = folder / GRAPH
    with writing(folder):
        if any(isinstance(each, ir.ExternalTensor) for each in onnx_io.tensors(model)):
            onnx_io.save(model, target)  # the data gets a name that belongs to the new file
        else:
            shutil.copyfile(graph, target)
    return Kept(model, folder, tuple(path.name for path in onnx_io.files(target)))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one sentence what keeps a file from being written."""
    try:
        yield
    except OSError as error:
        raise QConvertError(
            f"`{folder}` cannot be written: {error.strerror or reason(error)}",
            hint="make room there, or choose another place with `-o`",
        ) from None
