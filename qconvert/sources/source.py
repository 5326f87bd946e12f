"""A network as it was brought to us: its ONNX form, and its own way to run where it has one."""

from dataclasses import dataclass

import onnx_ir as ir

from qconvert.feeds import Run, TensorSpec
from qconvert.images.preprocess import Preprocess


@dataclass(frozen=True)
class Source:
    """A model in ONNX form; `run` is the original's forward, None if the original is ONNX.

    `preprocess` is what the source itself says is done to a picture, None where it says nothing.
    """

    name: str
    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    run: Run | None = None
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()
