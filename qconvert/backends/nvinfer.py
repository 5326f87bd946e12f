"""The native builder of TensorRT and of TensorRT for RTX, run in a child process.

Both Python modules have the same interface. A builder that crashes ends only the child, which costs
a build 0.5 s of one core: starting Python and the imports.
"""

import contextlib
import hashlib
import json
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
from qconvert.core.errors import QConvertError, Unavailable, UsageError, attach_path
from qconvert.core.pip_command import pip_install
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
    "fp4": "fp4|e2m1",
    "fp8": "fp8|e4m3",
    "int4": "int4",
    "int8": "int8",
    "fp32": "fp32|float",
}

# Modules and the hashes of files that they parsed in this process.
_parsed: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class NativeBuildOptions:
    """The options of a native build; `workspace` is in MiB, 0 for no limit."""

    inputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    workspace: int = 0
    level: int | None = None
    hardware_compatible: bool = False
    weight_stripped: bool = False
    use_tf32: bool = True
    timing_cache: Path | None = None


def build_and_wrap(
    module: str,
    model: ir.Model,
    output: Path,
    options: NativeBuildOptions,
    provider: str,
    progress: BuildProgressCallback,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Build the engine of the graph in a folder, and the ONNX file through which it is loaded."""
    folder = output.parent
    dynamic_inputs(options.inputs)  # refuses them before any work
    with explain_write_errors(folder):
        subprocess_worker.call(
            "qconvert.backends.nvinfer:build_job",
            module,
            (folder / GRAPH).absolute(),
            options,
            output.absolute(),
            product=PRODUCTS[module],
            report=progress,
            variables=variables,
        )
        # Named by what it is built from: caches of kernels keep a file of this name for it.
        origin = (folder / GRAPH).read_bytes() + str(options.profiles).encode()
        name = f"engine_{hashlib.sha256(origin).hexdigest()[:16]}"
        onnx_io.save(wrap_engine(model, output.name, provider, name), folder / CONTEXT)


def wrap_engine(model: ir.Model, engine: str, provider: str, name: str = "engine") -> ir.Model:
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
        "partition_name": name,
    }
    node = ir.node("EPContext", inputs, attributes, domain=DOMAIN, outputs=outputs, name="engine")
    opsets = {"": model.opset_imports.get("", 20), DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="engine")
    return ir.Model(graph, ir_version=model.ir_version, producer_name="qconvert")


def require_parsable(module: str, graph: Path, variables: Mapping[str, str] | None = None) -> None:
    """Refuse an ONNX file that the parser cannot read, or that crashes it."""
    key = (module, hashlib.sha256(graph.read_bytes()).hexdigest())
    if key not in _parsed:
        job, product = "qconvert.backends.nvinfer:parse_job", PRODUCTS[module]
        subprocess_worker.call(job, module, graph.absolute(), product=product, variables=variables)
        _parsed.add(key)


def prove_job(module: str, report: BuildProgressCallback) -> None:
    """Start the builder, which needs the libraries and the GPU; runs in a child process."""
    _create_builder(import_tensorrt(module))


def parse_job(module: str, graph: Path, report: BuildProgressCallback) -> None:
    """Parse a graph; runs in a child process."""
    trt = import_tensorrt(module)
    tensorrt_log(trt).prints = True
    _parse(trt, _create_builder(trt), graph)


def build_job(
    module: str,
    graph: Path,
    options: NativeBuildOptions,
    output: Path,
    report: BuildProgressCallback,
) -> None:
    """Build the engine of a graph into a file; runs in a child process."""
    trt = import_tensorrt(module)
    tensorrt_log(trt).prints = True
    engine = build_engine(trt, graph, options, report)
    with attach_path(output):
        output.write_bytes(engine)


def import_tensorrt(module: str) -> ModuleType:
    """Import a TensorRT with the CUDA libraries of Python packages and its own plugins."""
    if module == "tensorrt":
        with contextlib.suppress(Unavailable):
            from qconvert.backends.ort import preload_cuda_libraries

            preload_cuda_libraries()
    try:
        trt = import_module(module)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        raise Unavailable(
            f"{PRODUCTS[module]} " + ("is not installed" if missing else f"does not load: {error}"),
            hint=pip_install(module.replace("_", "-")),
        ) from None
    trt.init_libnvinfer_plugins(tensorrt_log(trt), "")  # the parser looks for operators there
    return trt


def build_engine(
    trt: ModuleType, graph: Path, options: NativeBuildOptions, progress: BuildProgressCallback
) -> bytes:
    """Build the engine of an ONNX file, strongly typed, and return its bytes.

    `tensorrt` needs a GPU here, `tensorrt_rtx` does not.
    """
    log = tensorrt_log(trt)
    log.errors.clear()
    builder = _create_builder(trt)
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
    if not options.use_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.timing_cache:
        _load_timings(config, options.timing_cache)
    _add_profiles(builder, config, options)
    monitor = progress_monitor(trt, progress)  # a variable: it must outlive the build
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise QConvertError(
            f"{PRODUCTS[trt.__name__]} cannot build an engine: {first_error(trt)}",
            details=log.errors[1:5],
            hint="`qconvert inspect` lists the operators; keep the failing ones in float with `--exclude`",
        )
    if options.timing_cache:
        # The engine is what counts: it took long, and lost timings are measured again.
        with contextlib.suppress(Exception):
            _save_timings(config, options.timing_cache)
    progress("built", 1.0)
    return bytes(engine)


def _load_timings(config: Any, path: Path) -> None:
    """Use the timings of earlier builds; they fit one GPU and release, others are measured anew."""
    data = b""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
    for content in (data, b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return


def _save_timings(config: Any, path: Path) -> None:
    timings = config.get_timing_cache()
    if timings is not None:
        atomic.write_bytes(path, bytes(timings.serialize()))


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


def open_engine(trt: ModuleType, engine: Path, weights: Path | None = None) -> Any:
    """Load an engine with TensorRT's own runtime; a stripped one takes its weights from a graph."""
    log = tensorrt_log(trt)
    log.errors.clear()
    loaded = trt.Runtime(log).deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise QConvertError(
            f"{PRODUCTS[trt.__name__]} cannot open `{engine.name}`: {first_error(trt)}",
            details=log.errors[1:5],
            hint="build it again on this machine: engines fit one GPU and one release",
        )
    if weights is not None:
        refitter = trt.Refitter(loaded, log)
        parser = trt.OnnxParserRefitter(refitter, log)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            reasons = [parser.get_error(at).desc() for at in range(parser.num_errors)]
            raise QConvertError(
                f"TensorRT cannot put the weights of `{weights.name}` into `{engine.name}`: "
                f"{(reasons or [first_error(trt)])[0]}",
                hint="build the engine again: its graph may have changed",
            )
    return loaded


def layer_precisions(trt: ModuleType, engine: Any) -> Mapping[str, int] | None:
    """Count the layers of a loaded engine by precision, None if TensorRT does not say."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return count_precisions(str(text))


def count_precisions(text: str) -> Mapping[str, int] | None:
    """Count the layers in the inspector's JSON by the type of their first input, None if not given.

    A layer that reads INT8 multiplies INT8, whatever type it returns. Reformatting counts as
    `casts`; a `NoOp` runs nothing and is left out.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    counts: Counter[str] = Counter()
    for layer in layers:
        if layer.get("LayerType") == "NoOp":
            continue
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


def _create_builder(trt: ModuleType) -> Any:
    try:
        return trt.Builder(tensorrt_log(trt))
    except TypeError:  # the constructor returned nothing
        raise Unavailable(
            f"{PRODUCTS[trt.__name__]} does not start: {first_error(trt)}",
            hint="`qconvert doctor` shows what is missing",
        ) from None


def _parse(trt: ModuleType, builder: Any, graph: Path) -> Any:
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, tensorrt_log(trt))
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
        f"{PRODUCTS[trt.__name__]} cannot read this model: {(reasons or [first_error(trt)])[0]}",
        details=reasons[1:5],
        hint=INT8_HINT if is_quantized else FLOAT_HINT,
    )


@cache
def tensorrt_log(trt: ModuleType) -> Any:
    """Return the log of a module: TensorRT keeps the first one it gets.

    With `prints`, warnings and errors go to stderr too: they tell of a crash.
    """

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.prints = False

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(text)
            if self.prints and severity <= trt.ILogger.WARNING:
                sys.stderr.write(f"{text}\n")

    return Log()


def first_error(trt: ModuleType) -> str:
    """Return the first error that TensorRT logged: later ones follow from it."""
    errors = tensorrt_log(trt).errors
    return errors[0].splitlines()[0] if errors else "no reason given"


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
