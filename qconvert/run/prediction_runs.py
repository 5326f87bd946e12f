"""What predicts: FP32 and the engines of a run, and how their outputs are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from qconvert import backends
from qconvert.backends.base import Engine
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io, tensors
from qconvert.images.listing import Images
from qconvert.measure.comparison import find_image_reading
from qconvert.run.context import EVALUATION_BATCH, JobContext, task_request
from qconvert.tasks.reading import Reading


@dataclass(frozen=True)
class PredictionRuns:
    """FP32, and each engine: itself where it runs here, else its graph on the CPU."""

    reference: Path
    engines: Mapping[str, Engine]
    runs_here: Mapping[str, bool]

    @cached_property
    def model(self) -> ir.Model:
        """The model of FP32."""
        return onnx_io.load(self.reference)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model fixes."""
        return tensors.fixed_batch(onnx_io.inputs(self.model))

    def open(self, name: str) -> tensors.RunModel:
        """Open an engine, or FP32 under an empty name."""
        if not name:
            return open_cpu(self.model)
        engine = self.engines[name]
        if self.runs_here.get(name):
            return backends.load(engine.backend).open(engine).run
        return open_cpu(onnx_io.load(engine.folder / engine.graph))

    def choose_reading(self, images: Images, context: JobContext) -> Reading | None:
        """Return how outputs are read, as the first batch with objects says."""
        size, request = self.fixed_batch, task_request(context.config.evaluate)
        return find_image_reading(images, request, self.open(""), size or EVALUATION_BATCH, size)
