"""Inputs and outputs that stay on a device from run to run of an ONNX Runtime session."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconvert.backends.ort import cannot_run, runtime
from qconvert.errors import QConvertError
from qconvert.feeds import Feeds

NAMED = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Bound:
    """A session with the memory that it reads and writes."""

    session: Any
    binding: Any
    inputs: Mapping[str, Any]

    def run(self) -> None:
        """Run once; ONNX Runtime waits for the device at the end."""
        self.session.run_with_iobinding(self.binding)

    def refill(self, feeds: Feeds) -> None:
        """Copy other values into the inputs' memory."""
        for name, array in feeds.items():
            self.inputs[name].update_inplace(array)

    def answer(self) -> Feeds:
        """Copy what the last run left off the device."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.binding.copy_outputs_to_cpu(), strict=True))


def bind(session: Any, feeds: Feeds, device: str, number: int) -> Bound:
    """Put inputs on the device, run once, and let later runs write where this one did."""
    bound = _with_inputs(session, feeds, device, number)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        bound.binding.bind_output(name, device, number)
    _first_run(bound, feeds)
    made = bound.binding.get_outputs()
    bound.binding.clear_binding_outputs()
    for name, value in zip(names, made, strict=True):
        bound.binding.bind_ortvalue_output(name, value)
    return bound


def bind_fixed(session: Any, feeds: Feeds, device: str, number: int) -> Bound:
    """Give inputs and outputs their memory before the first run, which a CUDA graph records."""
    bound = _with_inputs(session, feeds, device, number)
    for output in session.get_outputs():
        if output.type not in NAMED or not all(isinstance(size, int) for size in output.shape):
            raise QConvertError(
                f"a CUDA graph needs fixed shapes, the output `{output.name}` has {output.shape}",
                hint="leave out `cuda-graph`",
            )
        value = runtime.OrtValue.ortvalue_from_shape_and_type(
            output.shape, NAMED[output.type], device, number
        )
        bound.binding.bind_ortvalue_output(output.name, value)
    _first_run(bound, feeds)
    return bound


def _with_inputs(session: Any, feeds: Feeds, device: str, number: int) -> Bound:
    inputs = {
        name: runtime.OrtValue.ortvalue_from_numpy(array, device, number)
        for name, array in feeds.items()
    }
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    return Bound(session, binding, inputs)


def _first_run(bound: Bound, feeds: Feeds) -> None:
    try:
        bound.run()
    except Exception as error:  # its exception classes share no public base
        raise cannot_run(error, feeds) from None
