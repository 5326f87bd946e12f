"""A network as it was brought to us: its ONNX form, and its own way to run where it has one."""

from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.feeds import Run, TensorSpec


@dataclass(frozen=True)
class Source:
    """A model in ONNX form; `run` is the original's forward, None if the original is ONNX."""

    name: str
    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    run: Run | None = None
    notes: tuple[str, ...] = field(default=())
