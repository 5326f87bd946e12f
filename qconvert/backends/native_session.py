"""A session of TensorRT's own runtime, for engines that ONNX Runtime's provider cannot load.

Those are engines of a TensorRT that the provider does not link, and engines without weights. Device
memory comes from CUDA's runtime library, which TensorRT's packages bring; nothing else is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.backends import cuda_runtime, nvinfer
from qconvert.backends.base import Coverage
from qconvert.backends.cuda_runtime import TO_DEVICE, TO_HOST, BoundRun, Buffer
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors, TensorSpec


def open_session(
    engine: Path, outputs: Sequence[TensorSpec], device: int, weights: Path | None = None
) -> "NativeSession":
    """Load an engine on a GPU; `outputs` are those of its graph, `weights` the graph if it needs it."""
    trt = nvinfer.import_tensorrt("tensorrt")
    cuda_runtime.select(device)
    loaded = nvinfer.open_engine(trt, engine, weights)
    context = loaded.create_execution_context()
    if context is None:
        raise QConvertError(
            f"TensorRT cannot run `{engine.name}`: {nvinfer.first_error(trt)}",
            hint="free memory of the GPU, or choose another with `tensorrt.device`",
        )
    stream = cuda_runtime.make_stream(device)

    def coverage() -> Coverage:
        counts = nvinfer.layer_precisions(trt, loaded)
        if counts is None:
            return Coverage({"TensorRT": loaded.num_layers}, None, "the engine does not say")
        return Coverage({"TensorRT": sum(counts.values())}, counts)

    dtypes = {spec.name: spec.dtype for spec in outputs}
    return NativeSession(trt, context, dtypes, device, stream, coverage)


@dataclass(frozen=True)
class NativeSession:
    """An engine with its memory; runs wait for the GPU."""

    trt: Any
    context: Any
    outputs: Mapping[str, "np.dtype[Any]"]
    device: int
    stream: int
    coverage: Callable[[], Coverage]
    buffers: dict[str, Buffer] = field(default_factory=dict, compare=False)

    def run(self, feeds: Tensors) -> Tensors:
        """Run once, with all copies to and from the device."""
        results = self._prepare(feeds, self.buffers)
        self._enqueue()
        cuda_runtime.synchronize(self.stream)
        return {name: copy_to_host(buffer) for name, buffer in results.items()}

    def bind(self, feeds: Tensors) -> BoundRun:
        """Put inputs on the device; the result is valid until the session runs on others."""
        buffers: dict[str, Buffer] = {}
        results = self._prepare(feeds, buffers)
        self._enqueue()
        cuda_runtime.synchronize(self.stream)
        inputs = [(buffers[name].address, array.nbytes) for name, array in feeds.items()]
        outputs = [(buffer.address, buffer.bytes) for buffer in results.values()]
        return BoundRun(self._enqueue, self.stream, inputs, outputs, buffers)

    def _prepare(self, feeds: Tensors, buffers: dict[str, Buffer]) -> dict[str, Buffer]:
        """Copy inputs to the device, and name all tensors to the engine; return the outputs."""
        cuda_runtime.select(self.device)
        nvinfer.tensorrt_log(self.trt).errors.clear()
        for name, values in feeds.items():
            array = np.ascontiguousarray(values)
            buffer = _reuse(buffers, name, array.shape, array.dtype)
            action = f"copy `{name}` to the GPU"
            cuda_runtime.copy(buffer.address, array.ctypes.data, array.nbytes, TO_DEVICE, action)
            self.context.set_tensor_address(name, buffer.address)
            if not self.context.set_input_shape(name, buffer.shape):
                raise QConvertError(
                    f"the engine does not run on {name} {buffer.shape}: "
                    f"{nvinfer.first_error(self.trt)}",
                    hint="build it again with a `--profile` that includes this batch",
                )
        results = {}
        for name, dtype in self.outputs.items():
            shape = tuple(self.context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise QConvertError(
                    f"the shape of `{name}` depends on the values of the inputs",
                    hint="run it on another backend, such as `cuda`",
                )
            results[name] = _reuse(buffers, name, shape, dtype)
            self.context.set_tensor_address(name, results[name].address)
        return results

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream):
            raise QConvertError(
                f"TensorRT cannot run the engine: {nvinfer.first_error(self.trt)}",
                hint="`qconvert doctor` shows what works here",
            )


def copy_to_host(buffer: Buffer) -> "np.ndarray[Any, Any]":
    """Return the content of a buffer."""
    array = np.empty(buffer.shape, buffer.dtype)
    action = "copy an output from the GPU"
    cuda_runtime.copy(array.ctypes.data, buffer.address, array.nbytes, TO_HOST, action)
    return array


def _reuse(
    buffers: dict[str, Buffer], name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]"
) -> Buffer:
    """Return the buffer of a tensor, a new one if its shape has changed."""
    before = buffers.get(name)
    if before is None or before.shape != shape:
        buffers.pop(name, None)
        buffers[name] = cuda_runtime.allocate(shape, dtype)
    return buffers[name]
