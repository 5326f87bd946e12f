"""A session of TensorRT's own runtime, for engines that ONNX Runtime's provider cannot load.

Those are engines of a TensorRT that the provider does not link, and engines without weights. Device
memory comes from CUDA's runtime library, which TensorRT's packages bring; nothing else is needed.
"""

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.backends import nvinfer
from qconvert.backends.base import Coverage
from qconvert.backends.versions import CUDA_RELEASES
from qconvert.core.errors import QConvertError, Unavailable
from qconvert.core.tensors import Tensors, TensorSpec

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory on a GPU, which is freed with this object."""

    address: int
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"


def open_session(
    engine: Path, outputs: Sequence[TensorSpec], device: int, weights: Path | None = None
) -> "NativeSession":
    """Load an engine on a GPU; `outputs` are those of its graph, `weights` the graph if it needs it."""
    trt = nvinfer.import_tensorrt("tensorrt")
    check(cudart().cudaSetDevice(device), f"select GPU {device}")
    loaded = nvinfer.open_engine(trt, engine, weights)
    context = loaded.create_execution_context()
    if context is None:
        raise QConvertError(
            f"TensorRT cannot run `{engine.name}`: {nvinfer.first_error(trt)}",
            hint="free memory of the GPU, or choose another with `tensorrt.device`",
        )
    stream = ctypes.c_void_p()
    check(cudart().cudaStreamCreate(ctypes.byref(stream)), "create a stream")

    def coverage() -> Coverage:
        counts = nvinfer.layer_precisions(trt, loaded)
        if counts is None:
            return Coverage({"TensorRT": loaded.num_layers}, None, "the engine does not say")
        return Coverage({"TensorRT": sum(counts.values())}, counts)

    dtypes = {spec.name: spec.dtype for spec in outputs}
    return NativeSession(trt, context, dtypes, device, stream.value or 0, coverage)


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
        results = self._execute(self._copy_to_device(feeds, self.buffers), self.buffers)
        return {name: copy_to_host(buffer) for name, buffer in results.items()}

    def bind(self, feeds: Tensors) -> Callable[[], None]:
        """Put inputs on the device and return a call that runs on them."""
        buffers: dict[str, Buffer] = {}
        inputs = self._copy_to_device(feeds, buffers)

        def call() -> None:
            self._execute(inputs, buffers)

        call()
        return call

    def _copy_to_device(self, feeds: Tensors, buffers: dict[str, Buffer]) -> dict[str, Buffer]:
        check(cudart().cudaSetDevice(self.device), f"select GPU {self.device}")
        for name, values in feeds.items():
            array = np.ascontiguousarray(values)
            buffer = _reuse(buffers, name, array.shape, array.dtype)
            source = array.ctypes.data_as(ctypes.c_void_p)
            code = cudart().cudaMemcpy(
                ctypes.c_void_p(buffer.address), source, ctypes.c_size_t(array.nbytes), TO_DEVICE
            )
            check(code, f"copy `{name}` to the GPU")
        return {name: buffers[name] for name in feeds}

    def _execute(
        self, inputs: Mapping[str, Buffer], buffers: dict[str, Buffer]
    ) -> dict[str, Buffer]:
        """Run on inputs that are on the device; return the outputs, which are there too."""
        log = nvinfer.tensorrt_log(self.trt)
        log.errors.clear()
        for name, buffer in inputs.items():
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
        started = self.context.execute_async_v3(self.stream)
        check(cudart().cudaStreamSynchronize(ctypes.c_void_p(self.stream)), "run the engine")
        if not started:
            raise QConvertError(
                f"TensorRT cannot run the engine: {nvinfer.first_error(self.trt)}",
                hint="`qconvert doctor` shows what works here",
            )
        return results


def copy_to_host(buffer: Buffer) -> "np.ndarray[Any, Any]":
    """Return the content of a buffer."""
    array = np.empty(buffer.shape, buffer.dtype)
    target = array.ctypes.data_as(ctypes.c_void_p)
    size = ctypes.c_size_t(array.nbytes)
    check(
        cudart().cudaMemcpy(target, ctypes.c_void_p(buffer.address), size, TO_HOST),
        "copy an output from the GPU",
    )
    return array


def _reuse(
    buffers: dict[str, Buffer], name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]"
) -> Buffer:
    """Return the buffer of a tensor, a new one if its shape has changed."""
    before = buffers.get(name)
    if before is None or before.shape != shape:
        buffers.pop(name, None)
        buffers[name] = allocate(shape, dtype)
    return buffers[name]


def allocate(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Buffer:
    """Allocate memory on the current GPU."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    address = ctypes.c_void_p()
    code = cudart().cudaMalloc(ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
    check(code, f"allocate {size / 1e6:.1f} MB on the GPU")
    buffer = Buffer(address.value or 0, shape, dtype)
    weakref.finalize(buffer, cudart().cudaFree, address)
    return buffer


def check(code: int, action: str) -> None:
    """Raise an error with CUDA's reason if a call failed."""
    if code:
        text = cudart().cudaGetErrorString(code)
        raise QConvertError(
            f"CUDA cannot {action}: {text.decode(errors='replace')} (error {code})",
            hint="`nvidia-smi` shows what else uses the GPU; a smaller batch needs less memory",
        )


@cache
def cudart() -> ctypes.CDLL:
    """Return CUDA's runtime library, of the system or of a Python package."""
    names = [f"libcudart.so.{major}" for major in sorted(CUDA_RELEASES, reverse=True)]
    spec = find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        names += [str(path) for name in names for path in Path(folder).glob(f"*/lib/{name}")]
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    raise Unavailable(
        f"CUDA's runtime library is missing: {names[0]}", hint="pip install nvidia-cuda-runtime"
    )
