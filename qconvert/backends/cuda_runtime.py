"""CUDA's runtime library: memory, streams, events. The GPU packages of every backend bring it.

Called through ctypes: `cuda-python` and `pycuda` would bring or compile a second copy of what ONNX
Runtime and TensorRT have loaded already. All work is on the primary context, which they use too.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.backends.versions import CUDA_RELEASES
from qconvert.core.errors import QConvertError, Unavailable

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory on a GPU, which is freed with this object."""

    address: int
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"

    @property
    def bytes(self) -> int:
        """The size of its content."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class BoundRun:
    """An engine whose inputs and outputs are in the memory of a GPU.

    `enqueue` puts one run on the CUDA stream `stream` and does not wait for it. `inputs` and
    `outputs` are addresses and sizes in bytes; `owner` keeps the memory.
    """

    enqueue: Callable[[], None]
    stream: int
    inputs: Sequence[tuple[int, int]]
    outputs: Sequence[tuple[int, int]]
    owner: object = None


def select(device: int) -> None:
    """Make a GPU the one that calls of this thread mean."""
    check(cudart().cudaSetDevice(device), f"select GPU {device}")


def make_stream(device: int) -> int:
    """Return a new stream of a GPU; it lives as long as the process, which makes few."""
    select(device)
    stream = ctypes.c_void_p()
    check(cudart().cudaStreamCreate(ctypes.byref(stream)), "create a stream")
    return stream.value or 0


def synchronize(stream: int) -> None:
    """Wait for all work of a stream."""
    check(cudart().cudaStreamSynchronize(ctypes.c_void_p(stream)), "run the engine")


def allocate(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Buffer:
    """Allocate memory on the current GPU."""
    size, address = Buffer(0, shape, dtype).bytes, ctypes.c_void_p()
    code = cudart().cudaMalloc(ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
    check(code, f"allocate {size / 1e6:.1f} MB on the GPU")
    buffer = Buffer(address.value or 0, shape, dtype)
    weakref.finalize(buffer, cudart().cudaFree, address)
    return buffer


def pci_bus_id(device: int) -> str:
    """Return the place of a GPU on the bus, by which NVML knows it too."""
    text = ctypes.create_string_buffer(32)
    code = cudart().cudaDeviceGetPCIBusId(text, len(text), device)
    check(code, f"read the bus of GPU {device}")
    return text.value.decode()


def free_memory() -> int:
    """Return the bytes that are free on the current GPU."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = cudart().cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    check(code, "read how much memory is free")
    return free.value


def copy(target: int, source: int, size: int, kind: int, action: str) -> None:
    """Copy bytes between host and GPU, and wait."""
    code = cudart().cudaMemcpy(
        ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind
    )
    check(code, action)


class PinnedMemory:
    """Host memory that the GPU reads and writes directly, because it is page-locked."""

    def __init__(self, size: int) -> None:
        address = ctypes.c_void_p()
        code = cudart().cudaMallocHost(ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        check(code, f"page-lock {size / 1e6:.1f} MB of host memory")
        self.address = address.value or 0
        weakref.finalize(self, cudart().cudaFreeHost, address)


class PinnedCopies:
    """Copies between page-locked host memory and the GPU memory of a run, on its stream."""

    def __init__(self, run: BoundRun) -> None:
        self.stream = ctypes.c_void_p(run.stream)
        self.inputs = [(address, PinnedMemory(size), size) for address, size in run.inputs]
        self.outputs = [(address, PinnedMemory(size), size) for address, size in run.outputs]

    def send_inputs(self) -> None:
        """Put the copies to the GPU on the stream."""
        for address, host, size in self.inputs:
            self._copy(address, host.address, size, TO_DEVICE)

    def fetch_outputs(self) -> None:
        """Put the copies from the GPU on the stream."""
        for address, host, size in self.outputs:
            self._copy(host.address, address, size, TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        code = cudart().cudaMemcpyAsync(
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            kind,
            self.stream,
        )
        check(code, "copy between host and GPU")


class Event:
    """A point of a stream, whose time the GPU records."""

    def __init__(self) -> None:
        self.handle = ctypes.c_void_p()
        check(cudart().cudaEventCreate(ctypes.byref(self.handle)), "create an event")
        handle = ctypes.c_void_p(self.handle.value)
        weakref.finalize(self, cudart().cudaEventDestroy, handle)

    def record(self, stream: int) -> None:
        """Put the event on a stream."""
        check(cudart().cudaEventRecord(self.handle, ctypes.c_void_p(stream)), "record an event")

    def wait(self) -> None:
        """Wait until the stream has reached the event."""
        check(cudart().cudaEventSynchronize(self.handle), "run the engine")

    def milliseconds_since(self, earlier: "Event") -> float:
        """Return the time between two events that the GPU has reached."""
        elapsed = ctypes.c_float()
        code = cudart().cudaEventElapsedTime(ctypes.byref(elapsed), earlier.handle, self.handle)
        check(code, "read the time between two events")
        return elapsed.value


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
    """Return CUDA's runtime library, of a Python package as ONNX Runtime prefers, or the system's."""
    names = [f"libcudart.so.{major}" for major in sorted(CUDA_RELEASES, reverse=True)]
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    paths = [path for name in names for folder in folders for path in folder.glob(f"*/lib/{name}")]
    # The RTX plugin brings a copy, under its full version.
    plugin = find_spec(RTX_PLUGIN)
    if plugin is not None and plugin.origin:
        paths += Path(plugin.origin).parent.glob(f"{names[0]}*")
    for name in (*map(str, paths), *names):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    raise Unavailable(
        f"CUDA's runtime library is missing: {names[0]}", hint="pip install nvidia-cuda-runtime"
    )
