"""Time an engine on its GPU as `trtexec` does, and read what the GPU draws meanwhile from NVML.

- `device`: between two CUDA events around a run, with runs waiting behind it on the stream, so that
  the time the host needs to start a run does not count;
- `host`: a run with its copies from and to page-locked memory, from call to result;
- `graph`: the same with the run recorded as a CUDA graph and replayed;
- throughput: runs on several streams at once, with copies, while power and clocks are read.
"""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from qconvert.backends import cuda_runtime
from qconvert.backends.cuda_runtime import BoundRun, Event, PinnedCopies
from qconvert.core.errors import Unavailable, first_line
from qconvert.measure.latency import GpuLoad

# So many runs wait on a stream: enough that the GPU never waits for the host.
QUEUED_RUNS = 4
READING_SECONDS = 0.05  # between two readings of NVML, which take up to a millisecond

# NVML's reasons for lower clocks, by bit, except those that are no fault: an idle GPU, and clocks
# that the user has set.
THROTTLE_REASONS = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


def time_compute(run: BoundRun, seconds: float) -> tuple[float, ...]:
    """Return the milliseconds that the GPU spends on each run, from CUDA events."""
    samples: list[float] = []
    pairs = [(Event(), Event()) for _ in range(QUEUED_RUNS)]
    deadline = time.perf_counter() + seconds
    while len(samples) < 10 or time.perf_counter() < deadline:
        for before, after in pairs:
            before.record(run.stream)
            run.enqueue()
            after.record(run.stream)
        pairs[-1][1].wait()
        samples += [round(after.milliseconds_since(before), 6) for before, after in pairs]
    return tuple(samples)


def whole_call(run: BoundRun) -> Callable[[], None]:
    """Return a call that copies inputs to the GPU, runs, copies outputs back, and waits."""
    copies = PinnedCopies(run)

    def call() -> None:
        copies.send_inputs()
        run.enqueue()
        copies.fetch_outputs()
        cuda_runtime.synchronize(run.stream)

    return call


def measure_load(
    runs: Sequence[BoundRun], batch: int, seconds: float, device: int, device_bytes: int
) -> GpuLoad:
    """Keep all runs busy, each on its stream with its copies, and read the GPU meanwhile."""
    lanes = [(run, PinnedCopies(run), deque[Event]()) for run in runs]
    readings: list[tuple[int | None, float | None, int]] = []
    with _open_nvml(device) as gpu:
        energy, started = gpu.energy_millijoules(), time.perf_counter()
        done, next_reading = 0, started
        while (now := time.perf_counter()) < started + seconds or done < 10 * len(runs):
            for run, copies, waiting in lanes:
                event = waiting.popleft() if len(waiting) == QUEUED_RUNS else Event()
                event.wait()
                copies.send_inputs()
                run.enqueue()
                copies.fetch_outputs()
                event.record(run.stream)
                waiting.append(event)
                done += 1
            if now >= next_reading:
                readings.append((gpu.clock_mhz(), gpu.watts(), gpu.throttle_bits()))
                next_reading = now + READING_SECONDS
        for run in runs:
            cuda_runtime.synchronize(run.stream)
        elapsed, spent = time.perf_counter() - started, gpu.energy_millijoules()
    clocks = [clock for clock, _, _ in readings if clock is not None]
    watts = [power for _, power, _ in readings if power is not None]
    power = sum(watts) / len(watts) if watts else None
    images = done * batch
    # GPUs older than Volta count no energy: power times time stands for it.
    joules = (spent - energy) / 1000 if spent is not None and energy is not None else None
    if joules is None and power is not None:
        joules = power * elapsed
    bits = 0
    for _, _, reading in readings:
        bits |= reading
    return GpuLoad(
        len(runs),
        images / elapsed,
        device_bytes,
        int(median(clocks)) if clocks else None,
        power,
        None if joules is None else joules * 1000 / images,
        tuple(text for bit, text in THROTTLE_REASONS.items() if bits & bit),
    )


def record_graph(run: BoundRun) -> tuple[BoundRun | None, str]:
    """Record a run as a CUDA graph and return the run that replays it, or why there is none."""
    stream, graph, replay = ctypes.c_void_p(run.stream), ctypes.c_void_p(), ctypes.c_void_p()
    cudart = cuda_runtime.cudart()
    relaxed = 2  # cudaStreamCaptureModeRelaxed: allocations may happen meanwhile
    cuda_runtime.check(cudart.cudaStreamBeginCapture(stream, relaxed), "record a graph")
    reason = ""
    try:
        run.enqueue()
    except Exception as error:  # ONNX Runtime's exceptions have no public base
        reason = first_line(error)
    code = cudart.cudaStreamEndCapture(stream, ctypes.byref(graph))
    code = code or cudart.cudaGraphInstantiate(ctypes.byref(replay), graph, ctypes.c_ulonglong(0))
    if reason or code:
        return None, reason or cudart.cudaGetErrorString(code).decode(errors="replace")

    def launch() -> None:
        cuda_runtime.check(cudart.cudaGraphLaunch(replay, stream), "replay a graph")

    return BoundRun(launch, run.stream, run.inputs, run.outputs, run), ""


def free_memory(device: int) -> int | None:
    """Return the bytes that are free on a GPU; None without CUDA's runtime library."""
    try:
        cuda_runtime.select(device)
    except Unavailable:
        return None
    return cuda_runtime.free_memory()


def gpu_facts(device: int = 0) -> dict[str, str]:
    """Return what decides the speed of a GPU beside its name: clocks, power limit, MIG."""
    with _open_nvml(device) as gpu:
        return gpu.facts()


class _Nvml:
    """NVML's readings of a GPU; every reading is None where NVML is missing or does not tell."""

    def __init__(self, nvml: Any = None, handle: Any = None) -> None:
        self._nvml, self._handle = nvml, handle

    def _read(self, name: str, *args: object) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, name)(self._handle, *args)
        except self._nvml.NVMLError:  # not supported by this GPU, or not allowed
            return None

    def clock_mhz(self) -> int | None:
        """Return the clock of the multiprocessors."""
        sm = 1  # NVML_CLOCK_SM
        return self._read("nvmlDeviceGetClockInfo", sm)  # type: ignore[no-any-return]

    def watts(self) -> float | None:
        """Return the power of the whole GPU."""
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def energy_millijoules(self) -> int | None:
        """Return the energy since the driver was loaded."""
        return self._read("nvmlDeviceGetTotalEnergyConsumption")  # type: ignore[no-any-return]

    def throttle_bits(self) -> int:
        """Return why clocks are low, as bits."""
        return self._read("nvmlDeviceGetCurrentClocksThrottleReasons") or 0

    def facts(self) -> dict[str, str]:
        """Return the facts of `gpu_facts`."""
        limit, mig = (
            self._read("nvmlDeviceGetEnforcedPowerLimit"),
            self._read("nvmlDeviceGetMigMode"),
        )
        clock = self._read("nvmlDeviceGetMaxClockInfo", 1)
        facts = {
            "gpu clock": clock and f"at most {clock} MHz",
            "gpu power limit": limit and f"{limit / 1000:.0f} W",
            "mig": mig and ("on" if mig[0] else "off"),
        }
        return {name: fact for name, fact in facts.items() if fact}


@contextmanager
def _open_nvml(device: int) -> Iterator[_Nvml]:
    """Open NVML for a GPU as CUDA counts them; readings are None where there is no NVML."""
    with ExitStack() as stack:
        try:
            import pynvml

            pynvml.nvmlInit()
            stack.callback(pynvml.nvmlShutdown)
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(cuda_runtime.pci_bus_id(device))
            gpu = _Nvml(pynvml, handle)
        except Exception:  # a package or library is missing, or the driver does not answer
            gpu = _Nvml()
        yield gpu
