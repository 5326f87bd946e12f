"""The native builder of TensorRT and of TensorRT for RTX, run in a child process.

Both Python modules have the same interface. A builder that crashes ends only the child, which costs
a build 0.5 s of one core: starting Python and the imports.
"""

import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from qconvert.backends import subprocess_worker
from qconvert.backends.base import BuildProgressCallback, Profile
from qconvert.backends.engine_folder import EngineGraph, explain_write_errors
from qconvert.backends.tensorrt_options import dynamic_inputs
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError, attach_path
from qconvert.core.tensors import TensorSpec

PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
INT8_HINT = "int8 needs zero points of 0 and float biases: quantize with this backend's own scheme"
FLOAT_HINT = "replace that operator in the network, or leave this backend out: `--backend cpu`"
# The parser mistakes an operator that it does not know for one of a plugin.
UNKNOWN_OPERATOR = "Plugin not found"
REPORT_SECONDS = 0.05  # between two reports of progress, at least

_WORKER = "from qconvert.backends.nvinfer import worker_main; worker_main()"


@dataclass(frozen=True)
class NativeBuildOptions:
    """The options of a native build; `workspace` is in MiB, 0 for no limit."""

    profiles: tuple[Profile, ...]
    workspace: int = 0
    level: int | None = None
    hardware_compatible: bool = False
    weight_stripped: bool = False
    timing_cache: Path | None = None


# What a worker builds: inputs, options and the file to write; None if it only parses the graph.
Build = tuple[tuple[TensorSpec, ...], NativeBuildOptions, Path] | None


def build_in_subprocess(
    module: str,
    graph: EngineGraph,
    options: NativeBuildOptions,
    output: Path,
    progress: BuildProgressCallback,
) -> None:
    """Build an engine with `module` and write it to `output`.

    An exception of `progress`, such as Ctrl-C, ends the child and the build.
    """
    _run_worker(module, graph.path, (graph.inputs, options, output), progress)


def parse_in_subprocess(module: str, graph: Path) -> None:
    """Refuse an ONNX file that the parser of `module` cannot read, or that crashes it."""
    _run_worker(module, graph, None, lambda text, fraction: None)


def _run_worker(module: str, graph: Path, build: Build, progress: BuildProgressCallback) -> None:
    with subprocess_worker.start_python(_WORKER) as child:
        child.stdin.write(pickle.dumps((module, graph, build)))
        child.stdin.close()
        errors = list(_read_messages(child.stdout, progress))
        if errors:
            raise errors[0]
        if code := child.process.wait():
            raise _crash(module, code, child.error_lines())


def _read_messages(lines: IO[bytes], progress: BuildProgressCallback) -> Iterator[Exception]:
    """Pass on the progress of a worker, and yield the errors that it reports."""
    for line in lines:
        match json.loads(line):
            case ["progress", text, fraction]:
                progress(text, fraction)
            case ["error", message, details, hint]:
                yield QConvertError(message, details=details, hint=hint)
            case ["os error", number, message, path]:
                yield OSError(number, message, path)


def _crash(module: str, code: int, lines: Sequence[str]) -> Exception:
    if code > 0:
        return RuntimeError("\n".join(lines) or f"the build ended with code {code}")
    return QConvertError(
        f"{PRODUCTS.get(module, module)} crashed on this graph: "
        f"{subprocess_worker.describe_exit(code)}",
        details=lines[-3:],
        hint="leave parts of the graph in float with `--exclude`, or try another backend",
    )


def worker_main() -> None:
    """Do the work that stdin asks for, and report on stdout, one JSON list a line."""
    module, graph, build = pickle.load(sys.stdin.buffer)  # noqa: S301, the parent wrote it
    # Whatever libraries print goes to stderr, not between the messages.
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(*message: object) -> None:
        stdout.write(json.dumps(message) + "\n")
        stdout.flush()

    try:
        if module == "tensorrt":
            from qconvert.backends.ort import preload_cuda_libraries

            preload_cuda_libraries()
        trt = import_module(module)
        if build is None:
            parse_graph(trt, graph)
            return
        inputs, options, output = build
        engine = build_engine(
            trt, graph, inputs, options, lambda text, done: send("progress", text, done)
        )
        with attach_path(output):
            output.write_bytes(engine)
    except QConvertError as error:
        send("error", str(error), error.details, error.hint)
    except OSError as error:
        send("os error", error.errno, error.strerror, error.filename)


def build_engine(
    trt: ModuleType,
    graph: Path,
    inputs: Sequence[TensorSpec],
    options: NativeBuildOptions,
    progress: BuildProgressCallback,
) -> bytes:
    """Build the engine of an ONNX file, strongly typed, and return its bytes.

    `tensorrt` needs a GPU here, `tensorrt_rtx` does not.
    """
    log = _log(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network = _parse(trt, builder, graph, log)
    config = _builder_config(trt, builder, inputs, options)
    monitor = progress_monitor(trt, progress)  # a variable: it must outlive the build
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise QConvertError(
            f"{_product(trt)} cannot build an engine: {_last(log.errors)}",
            details=log.errors[-5:],
            hint="`qconvert inspect` shows the operators; leave out what it names with `--exclude`",
        )
    if options.timing_cache:
        _save_timings(config, options.timing_cache)
    progress("built", 1.0)
    return bytes(engine)


def parse_graph(trt: ModuleType, graph: Path) -> None:
    """Refuse an ONNX file that the parser cannot read."""
    log = _log(trt)
    _parse(trt, trt.Builder(log), graph, log)


def inspect_engine(trt: ModuleType, engine: bytes) -> str:
    """Return the JSON of TensorRT's engine inspector; this needs a GPU that runs the engine."""
    loaded = trt.Runtime(_log(trt)).deserialize_cuda_engine(engine)
    if loaded is None:
        raise QConvertError(
            f"{_product(trt)} cannot open this engine: {_last(_log(trt).errors)}",
            hint="build it again on this machine: engines fit one GPU and one release",
        )
    inspector = loaded.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _parse(trt: ModuleType, builder: Any, graph: Path, log: Any) -> Any:
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    flags = 0 if strongly_typed is None else 1 << int(strongly_typed)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return network
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [f"{error.node_name()} ({error.node_operator()}): {_text(error)}" for error in errors]
    nodes = onnx_io.all_nodes(onnx_io.load(graph))
    is_quantized = any("Quantize" in node.op_type for node in nodes)
    raise QConvertError(
        f"{_product(trt)} cannot read this model: {reasons[0] if reasons else 'no reason given'}",
        details=reasons[1:5],
        hint=INT8_HINT if is_quantized else FLOAT_HINT,
    )


def _text(error: Any) -> str:
    text = str(error.desc())
    return "it has no such operator" if UNKNOWN_OPERATOR in text else text


def _builder_config(
    trt: ModuleType, builder: Any, inputs: Sequence[TensorSpec], options: NativeBuildOptions
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector: layer types
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * 2**20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.weight_stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if path := options.timing_cache:
        timings = path.read_bytes() if path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    dynamic = dynamic_inputs(inputs)
    for sizes in options.profiles if dynamic else ():
        profile = builder.create_optimization_profile()
        for spec in dynamic:
            batches = (sizes.min_batch, sizes.opt_batch, sizes.max_batch)
            profile.set_shape(spec.name, *((batch, *spec.shape[1:]) for batch in batches))
        config.add_optimization_profile(profile)
    return config


def _save_timings(config: Any, path: Path) -> None:
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.temporary_folder(path.parent) as folder:
            (folder / path.name).write_bytes(bytes(config.get_timing_cache().serialize()))
            (folder / path.name).replace(path)


@cache
def _log(trt: ModuleType) -> Any:
    """Return the log of a module: TensorRT keeps the first one it gets."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text)

    return Log()


def _last(errors: Sequence[str]) -> str:
    return errors[-1].splitlines()[0] if errors else "no reason given"


def _product(trt: ModuleType) -> str:
    return PRODUCTS.get(trt.__name__, trt.__name__)


def progress_monitor(
    trt: ModuleType, progress: BuildProgressCallback, interval: float = REPORT_SECONDS
) -> Any:
    """Return a monitor that turns TensorRT's nested phases into one fraction.

    A phase fills one step of its parent. `phases` maps its name to the fraction it has reached and
    what each of its steps adds.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, tuple[float, float]] = {}
            self.fraction = self.last_report = 0.0
            self.lock = threading.Lock()  # several threads report

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self.lock:
                reached, share = self.phases.get(parent or "", (0.0, 1.0))
                self.phases[name] = (reached, share / max(steps, 1))
                self.report(name)

        def step_complete(self, name: str, step: int) -> bool:
            with self.lock:
                reached, share = self.phases.get(name, (0.0, 0.0))
                self.phases[name] = (reached + share, share)
                # A parent may start several phases within one step: progress never goes back.
                self.fraction = min(1.0, max(self.fraction, reached + share))
                self.report(name)
            return True  # go on

        def phase_finish(self, name: str) -> None:
            with self.lock:
                self.phases.pop(name, None)

        def report(self, name: str) -> None:
            if time.monotonic() - self.last_report >= interval:
                self.last_report = time.monotonic()
                progress(name, self.fraction)

    return Monitor()
