"""The native builder of TensorRT and of TensorRT for RTX: one interface in two Python modules."""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeVar

import numpy as np

from qconvert.backends import subprocess_worker
from qconvert.backends.base import BuildProgressCallback, Profile
from qconvert.backends.engine_folder import EngineGraph, explain_write_errors
from qconvert.backends.tensorrt_options import dynamic_inputs
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError, attach_path
from qconvert.core.tensors import TensorSpec

T = TypeVar("T")
POLL_SECONDS = 0.05


@dataclass
class _Phase:
    """A phase that fills one step of its parent, from `start`; each of its steps takes `share`."""

    start: float
    share: float
    done: int = 0

    @property
    def reached(self) -> float:
        return self.start + self.done * self.share


@dataclass
class BuildProgress:
    """What the builder's threads report; `stopped` asks them to give up at their next step."""

    stopped: bool = False
    doing: str = ""
    fraction: float = 0.0
    _phases: dict[str, _Phase] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps starts, as one step of its parent."""
        with self._lock:
            above = self._phases.get(parent or "")
            start, share = (above.reached, above.share) if above else (0.0, 1.0)
            self._phases[name] = _Phase(start, share / max(steps, 1))
            self.doing = name

    def step(self, name: str) -> bool:
        """A step of a phase is done; say whether the build shall go on."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done += 1
                # A parent may start several phases within one step: the bar does not go back.
                self.fraction = min(1.0, max(self.fraction, phase.reached))
            return not self.stopped

    def end(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(name, None)


def run_with_progress(
    work: Callable[[], T], progress: BuildProgress, heard: BuildProgressCallback
) -> T:
    """Do the work in a thread, tell how far it is, and stop it cleanly when interrupted.

    The builder reports from its own thread, in which no Ctrl-C arrives: it is waited for here.
    """
    told = ("", -1.0)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=POLL_SECONDS).done:
                if (now := (progress.doing, progress.fraction)) != told:
                    heard(*now)
                    told = now
        except BaseException:
            progress.stopped = True  # leaving the block waits for the thread
            raise
        return future.result()


PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
CURE = "int8 needs zero points of 0 and float biases: quantize with this backend's own scheme"
FLOAT_CURE = "replace what it names in the network, or leave this backend out: `--backend cpu`"
# The parser takes an operator that it does not know for one of a plugin.
UNKNOWN = "Plugin not found"


@dataclass(frozen=True)
class NativeBuildOptions:
    """What a native build is told; `workspace` is in MiB, 0 for all there is."""

    profiles: tuple[Profile, ...]
    workspace: int = 0
    level: int | None = None
    hardware_compatible: bool = False
    weight_stripped: bool = False
    timing_cache: Path | None = None


def build_engine(
    trt: ModuleType,
    graph: Path,
    inputs: Sequence[TensorSpec],
    wishes: NativeBuildOptions,
    heard: BuildProgressCallback,
) -> bytes:
    """Return the engine of an ONNX file, typed as the graph is, built by the module given.

    An exception from `heard`, as Ctrl-C is one, ends the build at its next step. `tensorrt` needs a
    GPU here, `tensorrt_rtx` none.
    """
    log = _log(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network = _parsed(trt, builder, graph, log)
    progress = BuildProgress()
    config = _configured(trt, builder, inputs, wishes)
    monitor = _monitor(trt, progress)  # held here: it must outlive what reports to it
    config.progress_monitor = monitor
    engine = run_with_progress(
        lambda: builder.build_serialized_network(network, config), progress, heard
    )
    if engine is None:
        raise QConvertError(
            f"{_product(trt)} cannot build an engine: {_last(log.errors)}",
            details=log.errors[-5:],
            hint="`qconvert inspect` shows the operators; leave out what it names with `--exclude`",
        )
    if wishes.timing_cache:
        _store_timings(config, wishes.timing_cache)
    heard("built", 1.0)
    return bytes(engine)


def parse_graph(trt: ModuleType, graph: Path) -> None:
    """Refuse an ONNX file that the parser does not read, as a build would."""
    log = _log(trt)
    _parsed(trt, trt.Builder(log), graph, log)


def inspect_engine(trt: ModuleType, engine: bytes) -> str:
    """Return what TensorRT's inspector says of an engine, as JSON; this needs a GPU it runs on."""
    opened = trt.Runtime(_log(trt)).deserialize_cuda_engine(engine)
    if opened is None:
        raise QConvertError(
            f"{_product(trt)} cannot open this engine: {_last(_log(trt).errors)}",
            hint="build it again on this machine: engines fit one GPU and one release",
        )
    inspector = opened.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _parsed(trt: ModuleType, builder: Any, graph: Path, log: Any) -> Any:
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return network
    said = [parser.get_error(at) for at in range(parser.num_errors)]
    why = [f"{each.node_name()} ({each.node_operator()}): {_words(each)}" for each in said]
    rounded = any("Quantize" in node.op_type for node in onnx_io.all_nodes(onnx_io.load(graph)))
    raise QConvertError(
        f"{_product(trt)} cannot read this model: {why[0] if why else 'no reason given'}",
        details=why[1:5],
        hint=CURE if rounded else FLOAT_CURE,
    )


def _words(error: Any) -> str:
    text = str(error.desc())
    return "it has no such operator" if UNKNOWN in text else text


def _configured(
    trt: ModuleType, builder: Any, inputs: Sequence[TensorSpec], wishes: NativeBuildOptions
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's types of layers
    if wishes.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, wishes.workspace * 2**20)
    if wishes.level is not None:
        config.builder_optimization_level = wishes.level
    if wishes.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if wishes.weight_stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if wishes.timing_cache:
        known = wishes.timing_cache.read_bytes() if wishes.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    dynamic = dynamic_inputs(inputs)
    for sizes in wishes.profiles if dynamic else ():
        profile = builder.create_optimization_profile()
        for spec in dynamic:
            batches = (sizes.min_batch, sizes.opt_batch, sizes.max_batch)
            profile.set_shape(spec.name, *((batch, *spec.shape[1:]) for batch in batches))
        config.add_optimization_profile(profile)
    return config


def _store_timings(config: Any, path: Path) -> None:
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.temporary_folder(path.parent) as draft:
            (draft / path.name).write_bytes(bytes(config.get_timing_cache().serialize()))
            (draft / path.name).replace(path)


@cache
def _log(trt: ModuleType) -> Any:
    """Return the one log of a module: it takes the first it is given, and keeps to that."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text)

    return Log()


def _monitor(trt: ModuleType, progress: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.begin(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return progress.step(name)

        def phase_finish(self, name: str) -> None:
            progress.end(name)

    return Monitor()


def _last(errors: Sequence[str]) -> str:
    return errors[-1].splitlines()[0] if errors else "no reason given"


def _product(trt: ModuleType) -> str:
    return PRODUCTS.get(trt.__name__, trt.__name__)


_WORKER = "from qconvert.backends.nvinfer import child; child()"


def build_in_subprocess(
    module: str,
    kept: EngineGraph,
    wishes: NativeBuildOptions,
    out: Path,
    heard: BuildProgressCallback,
) -> None:
    """Build an engine with the module named, and write it to `out`; what `heard` raises ends it."""
    asked = {
        "graph": str(kept.path),
        "inputs": [(each.name, each.dtype.name, each.shape) for each in kept.inputs],
        "wishes": {**asdict(wishes), "timing_cache": _text(wishes.timing_cache)},
        "out": str(out),
    }
    _run_worker(module, asked, heard)


def parse_in_subprocess(module: str, graph: Path) -> None:
    """Refuse an ONNX file that the parser of the module named does not read, or not survive."""
    _run_worker(module, {"graph": str(graph)}, lambda text, share: None)


def _run_worker(module: str, asked: Mapping[str, Any], heard: BuildProgressCallback) -> None:
    with (
        tempfile.TemporaryFile() as log,
        subprocess_worker.start_python(_WORKER, stderr=log.fileno()) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"module": module, **asked}).encode())
            process.stdin.close()
            refused = list(_refusals(process.stdout, heard))
            code = process.wait()
        finally:
            process.kill()
        if refused:
            raise refused[0]
        if code:
            raise _died(module, code, log)


def worker_main() -> None:
    """Do what is asked on stdin, and tell on stdout how it goes."""
    asked = json.load(sys.stdin)
    # What libraries print must not come between.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(*words: object) -> None:
        told.write(json.dumps(words) + "\n")
        told.flush()

    try:
        _work(asked, lambda text, share: tell("heard", text, share))
    except QConvertError as error:
        tell("refused", str(error), error.details, error.hint)
    except OSError as error:
        tell("unwritten", error.errno, error.strerror, error.filename)


def _work(asked: dict[str, Any], heard: BuildProgressCallback) -> None:
    if asked["module"] == "tensorrt":
        from qconvert.backends.ort import preload_cuda_libraries

        preload_cuda_libraries()
    trt = import_module(asked["module"])
    if "wishes" not in asked:
        parse_graph(trt, Path(asked["graph"]))
        return
    given = asked["wishes"]
    profiles = tuple(Profile(**each) for each in given["profiles"])
    cache = Path(given["timing_cache"]) if given["timing_cache"] else None
    wishes = NativeBuildOptions(**{**given, "profiles": profiles, "timing_cache": cache})
    told = asked["inputs"]
    inputs = [TensorSpec(name, np.dtype(kind), tuple(shape)) for name, kind, shape in told]
    engine = build_engine(trt, Path(asked["graph"]), inputs, wishes, heard)
    out = Path(asked["out"])
    with attach_path(out):
        out.write_bytes(engine)


def _refusals(lines: IO[bytes], heard: BuildProgressCallback) -> Iterator[Exception]:
    for line in lines:
        match json.loads(line):
            case ["heard", text, share]:
                heard(text, share)
            case ["refused", message, details, hint]:
                yield QConvertError(message, details=details, hint=hint)
            case ["unwritten", number, words, place]:
                yield OSError(number, words, place)


def _died(module: str, code: int, log: IO[bytes]) -> Exception:
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if code > 0:
        return RuntimeError("\n".join(said) or f"the build ended with code {code}")
    return QConvertError(
        f"{PRODUCTS.get(module, module)} did not survive this graph: {subprocess_worker.describe_exit(code)}",
        details=said[-3:],
        hint="leave parts of the graph in float with `--exclude`, or try another backend",
    )


def _text(path: Path | None) -> str:
    return str(path) if path is not None else ""
