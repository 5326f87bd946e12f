"""Packages of a finished run, for programs without qconvert."""

from typing import Literal

Format = Literal["onnxruntime", "triton"]
