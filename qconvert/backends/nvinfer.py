"""The native builder of TensorRT and of TensorRT for RTX, run in a child process.

Both Python modules have the same interface. A builder that crashes ends only the child, which costs
a build 0.5 s of one core: starting Python and the imports.
"""

import json
import os
import pickle
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from qconvert.backends import subprocess_worker
from qconvert.backends.base import GRAPH, BuildProgressCallback, Profile, explain_write_errors
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError, UsageError, attach_path
from qconvert.core.tensors import TensorSpec

CONTEXT = "model_ctx.onnx"
DOMAIN = "com.microsoft"
PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
INT8_HINT = "int8 needs zero points of 0 and float biases: quantize with this backend's own scheme"
FLOAT_HINT = "replace that operator in the network, or leave this backend out: `--backend cpu`"

# TensorRT's releases spell types differently: `Row major linear FP32`, `Half`, `Int8 NHWC32`.
SPELLINGS = {
    "bf16": "bf16|bfloat",
    "fp16": "fp16|half",
    "fp8": "fp8",
    "int8": "int8",
    "fp32": "fp32|float",
}


@dataclass(frozen=True)
class NativeBuildOptions:
    """The options of a native build; `workspace` is in MiB, 0 for no limit."""

    inputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    workspace: int = 0
    level: int | None = None
    hardware_compatible: bool = False
    weight_stripped: bool = False
    timing_cache: Path | None = None


def build_and_wrap(
    module: str,
    model: ir.Model,
    output: Path,
    options: NativeBuildOptions,
    provider: str,
    progress: BuildProgressCallback,
) -> None:
    """Build the engine of the graph in a folder, and the ONNX file through which it is loaded."""
    folder = output.parent
    with explain_write_errors(folder):
        run_worker(module, folder / GRAPH, (options, output), progress)
        onnx_io.save(wrap_engine(model, output.name, provider), folder / CONTEXT)


def wrap_engine(model: ir.Model, engine: str, provider: str) -> ir.Model:
    """Return a model of one EPContext node, whose provider loads an engine file beside the model.

    Inputs and outputs are those of `model`. Providers refuse paths outside the model's folder.
    """
    if engine.startswith("/") or ".." in engine:
        raise ValueError(f"an engine must be in the folder of its model, got {engine}")
    inputs, outputs = (
        [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in values]
        for values in (model.graph.inputs, model.graph.outputs)
    )
    attributes: dict[str, int | str] = {
        # Whether an engine holds all nodes or one: RTX writes an engine for every node.
        "main_context": int(provider == "TensorrtExecutionProvider"),
        "embed_mode": 0,
        "ep_cache_context": engine,
        "source": provider,
        "onnx_model_filename": GRAPH,
        "partition_name": "engine",
    }
    node = ir.node("EPContext", inputs, attributes, domain=DOMAIN, outputs=outputs, name="engine")
    opsets = {"": model.opset_imports.get("", 20), DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="engine")
    return ir.Model(graph, ir_version=model.ir_version, producer_name="qconvert")


def run_worker(
    module: str,
    graph: Path,
    build: tuple[NativeBuildOptions, Path] | None = None,
    progress: BuildProgressCallback = lambda text, fraction: None,
) -> None:
    """Let `module` parse a graph in a child process, and build its engine into a file.

    It refuses an ONNX file that the parser cannot read, or that crashes it. An exception of
    `progress`, such as Ctrl-C, ends the child and the build.
    """
    code = "from qconvert.backends.nvinfer import worker_main; worker_main()"
    errors: list[Exception] = []
    with subprocess_worker.start_python(code) as child:
        child.stdin.write(pickle.dumps((module, graph, build)))
        child.stdin.close()
        for line in child.stdout:
            match json.loads(line):
                case ["progress", text, fraction]:
                    progress(text, fraction)
                case ["error", message, details, hint]:
                    errors.append(QConvertError(message, details=details, hint=hint))
                case ["os error", number, message, path]:
                    errors.append(OSError(number, message, path))
        if errors:
            raise errors[0]
        status, lines = child.process.wait(), child.error_lines()
    if status > 0:
        raise RuntimeError("\n".join(lines) or f"the build failed with exit code {status}")
    if status < 0:
        raise QConvertError(
            f"{PRODUCTS[module]} crashed on this graph: {subprocess_worker.describe_exit(status)}",
            details=lines[-3:],
            hint="leave parts of the graph in float with `--exclude`, or try another backend",
        )


def worker_main() -> None:
    """Do the work requested on stdin, and report on stdout, one JSON list per line."""
    module, graph, build = pickle.load(sys.stdin.buffer)  # noqa: S301, the parent wrote it
    # Output of libraries goes to stderr, so that it does not mix with the messages.
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
            _parse(trt, trt.Builder(_log(trt)), graph)
            return
        options, output = build
        engine = build_engine(trt, graph, options, lambda text, done: send("progress", text, done))
        with attach_path(output):
            output.write_bytes(engine)
    except QConvertError as error:
        send("error", str(error), error.details, error.hint)
    except OSError as error:
        send("os error", error.errno, error.strerror, error.filename)


def build_engine(
    trt: ModuleType, graph: Path, options: NativeBuildOptions, progress: BuildProgressCallback
) -> bytes:
    """Build the engine of an ONNX file, strongly typed, and return its bytes.

    `tensorrt` needs a GPU here, `tensorrt_rtx` does not.
    """
    log = _log(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    network = _parse(trt, builder, graph)
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
    path = options.timing_cache
    if path:
        timings = path.read_bytes() if path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    _add_profiles(builder, config, options)
    monitor = progress_monitor(trt, progress)  # a variable: it must outlive the build
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise QConvertError(
            f"{PRODUCTS[trt.__name__]} cannot build an engine: {_last(log.errors)}",
            details=log.errors[-5:],
            hint="`qconvert inspect` lists the operators; keep the failing ones in float with `--exclude`",
        )
    if path:
        with explain_write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.temporary_folder(path.parent) as folder:
                (folder / path.name).write_bytes(bytes(config.get_timing_cache().serialize()))
                (folder / path.name).replace(path)
    progress("built", 1.0)
    return bytes(engine)


def _add_profiles(builder: Any, config: Any, options: NativeBuildOptions) -> None:
    dynamic = dynamic_inputs(options.inputs)
    for sizes in options.profiles if dynamic else ():
        profile = builder.create_optimization_profile()
        for spec in dynamic:
            profile.set_shape(spec.name, *((batch, *spec.shape[1:]) for batch in astuple(sizes)))
        config.add_optimization_profile(profile)


def dynamic_inputs(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the inputs whose batch is dynamic; refuse any other dynamic dimension."""
    for spec in inputs:
        if spec.has_dynamic_shape:
            raise UsageError(
                f"an engine needs the sizes of `{spec}`; only the batch may be dynamic",
                hint=f"set them with `--input {spec.name}:1x3x224x224` when exporting",
            )
    return [spec for spec in inputs if spec.shape and not isinstance(spec.shape[0], int)]


def inspect_engine(trt: ModuleType, engine: bytes) -> str:
    """Return the JSON of TensorRT's engine inspector; this needs a GPU that runs the engine."""
    loaded = trt.Runtime(_log(trt)).deserialize_cuda_engine(engine)
    if loaded is None:
        raise QConvertError(
            f"{PRODUCTS[trt.__name__]} cannot open this engine: {_last(_log(trt).errors)}",
            hint="build it again on this machine: engines fit one GPU and one release",
        )
    inspector = loaded.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layer_precisions(text: str) -> Mapping[str, int] | None:
    """Count the layers of a TensorRT engine by the type of their first input, None if not given.

    A layer that reads INT8 multiplies INT8, whatever type it returns. Reformatting counts as
    `casts`. Written from the description of the format; no engine was inspected to test it.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    counts: Counter[str] = Counter()
    for layer in layers:
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
        formats = [item.get("Format/Datatype", item.get("Datatype", "")) for item in tensors]
        precisions = (
            precision
            for dtype in formats
            for precision, pattern in SPELLINGS.items()
            if re.search(pattern, str(dtype), re.IGNORECASE)
        )
        is_cast = layer.get("LayerType") == "Reformat"
        counts["casts" if is_cast else next(precisions, "other")] += 1
    return dict(sorted(counts.items()))


def _parse(trt: ModuleType, builder: Any, graph: Path) -> Any:
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, _log(trt))
    if parser.parse_from_file(str(graph)):
        return network
    reasons = []
    for error in map(parser.get_error, range(parser.num_errors)):
        text = str(error.desc())
        if "Plugin not found" in text:  # it mistakes an unknown operator for a plugin
            text = "it has no such operator"
        reasons.append(f"{error.node_name()} ({error.node_operator()}): {text}")
    nodes = onnx_io.all_nodes(onnx_io.load(graph))
    is_quantized = any("Quantize" in node.op_type for node in nodes)
    raise QConvertError(
        f"{PRODUCTS[trt.__name__]} cannot read this model: {(reasons or ['no reason given'])[0]}",
        details=reasons[1:5],
        hint=INT8_HINT if is_quantized else FLOAT_HINT,
    )


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


def progress_monitor(
    trt: ModuleType, progress: BuildProgressCallback, interval: float = 0.05
) -> Any:
    """Return a monitor that turns TensorRT's nested phases into one fraction.

    A phase fills one step of its parent. `phases` maps its name to the fraction it has reached and
    what each of its steps adds. Reports are `interval` seconds apart, at least.
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
