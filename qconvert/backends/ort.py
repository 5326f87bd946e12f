"""ONNX Runtime sessions: the CPU reference that all engines are compared with, and engines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from qconvert.backends.base import Coverage, LoadSpec
from qconvert.backends.precision_coverage import kernel_precisions
from qconvert.backends.system_probe import integer_instructions
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError, Unavailable, first_line
from qconvert.core.tensors import RunModel, Tensors

try:
    import onnxruntime
except ModuleNotFoundError:
    raise Unavailable(
        "ONNX Runtime is not installed",
        hint='pip install "qconvert[cpu]", or [cuda], [tensorrt] or [tensorrt-rtx] on a GPU host',
    ) from None

# Modules beside this one import it from here, for the error above.
runtime: Any = onnxruntime
ORT_VERSION = str(onnxruntime.__version__)

# Failures arrive as exceptions; the log would repeat them on stderr.
SILENT = 4
runtime.set_default_logger_severity(SILENT)
# Nothing leaves this machine.
runtime.disable_telemetry_events()

CPU = "CPUExecutionProvider"
OPTIMIZE_ALL = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
OPTIMIZE_EXTENDED = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
OPTIMIZE_NONE = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL


def open_cpu(model: ir.Model, threads: int = 0, *, keep_qdq: bool = False) -> RunModel:
    """Load a model on the CPU provider and return the function that runs it.

    `threads` of 0 uses one for each core. ONNX Runtime fuses Q/DQ nodes into integer kernels; with
    `keep_qdq` it runs them one by one, as the graph is written.
    """
    entries = {
        # Idle threads that spin take cores from those that decode the next images.
        "session.intra_op.allow_spinning": "0",
        "session.disable_quant_qdq": str(int(keep_qdq or has_float_biases(model))),
    }
    spec = LoadSpec(((CPU, {}),), (), entries, threads=threads, integer_kernels=True)
    options = session_options(spec)
    # Planned buffers are no faster here, and a third larger.
    options.enable_mem_pattern = False
    if onnx_io.weight_bytes(model) < onnx_io.IN_MEMORY_BYTES:
        return _open(onnx_io.serialize(model), options)
    with atomic.system_temporary_folder() as folder:
        path = folder / "model.onnx"
        onnx_io.save(model, path, external=True)
        return _open(str(path), options)


def has_float_biases(model: ir.Model) -> bool:
    """Whether a model is quantized for TensorRT: symmetric activations, biases left in float.

    ONNX Runtime 1.31 turns such biases into integers, which overflow where a bias is large relative
    to its scales, and are meaningless where scales are in half precision. With
    `session.disable_quant_qdq` it leaves Q/DQ nodes alone and computes the graph as written.
    """
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    return bool(quantizers) and all(_is_symmetric(node) for node in quantizers)


def x64_quant_precision() -> str:
    """Return the value of `session.x64quantprecision` for this CPU.

    Without 1, CPUs that lack VNNI silently overflow in 16 bits. On others 1 changes no number and
    turns weights into unsigned ones, for which they have no VNNI kernel: EfficientNet-Lite0 took
    8.4 ms instead of 3.9 ms (one thread of an EPYC with VNNI, ONNX Runtime 1.31).
    """
    return "0" if integer_instructions() else "1"


def run_error(error: Exception, feeds: Tensors) -> QConvertError:
    """Return the error to raise when a session fails on these inputs."""
    shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
    return QConvertError(
        f"ONNX Runtime cannot run this model on {shapes}: {error_message(error)}",
        hint="if a size was guessed wrong, set it with `--input NAME:SHAPE`",
    )


def error_message(error: Exception) -> str:
    """Drop the codes and file names that ONNX Runtime puts before its sentence."""
    text = first_line(error, limit=1000)
    for noise in ("[ONNXRuntimeError] : ", "Load model from "):
        text = text.replace(noise, "")
    return first_line(ValueError(text.split(" : ", 2)[-1]), limit=240)


@dataclass(frozen=True)
class BoundSession:
    """A session with the device memory that it reads and writes."""

    session: Any
    binding: Any
    inputs: Mapping[str, Any]

    def run(self) -> None:
        """Run once; ONNX Runtime waits for the device at the end."""
        self.session.run_with_iobinding(self.binding)

    def update_inputs(self, feeds: Tensors) -> None:
        """Copy new values into the memory of the inputs."""
        for name, array in feeds.items():
            self.inputs[name].update_inplace(array)

    def outputs(self) -> Tensors:
        """Copy the outputs of the last run to the host."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.binding.copy_outputs_to_cpu(), strict=True))


def bind_session(
    session: Any, feeds: Tensors, device: str, device_id: int, *, allocate_outputs: bool
) -> BoundSession:
    """Put inputs on the device, run once, and let later runs write to the memory of that run.

    With `allocate_outputs` the outputs have their memory before the first run, which a CUDA graph
    records; this needs fixed shapes.
    """
    inputs = {
        name: runtime.OrtValue.ortvalue_from_numpy(array, device, device_id)
        for name, array in feeds.items()
    }
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    outputs = session.get_outputs()
    for output in outputs:
        if allocate_outputs:
            binding.bind_ortvalue_output(output.name, _allocate(output, device, device_id))
        else:
            binding.bind_output(output.name, device, device_id)
    bound = BoundSession(session, binding, inputs)
    try:
        bound.run()
    except Exception as error:  # its exception classes have no public base
        raise run_error(error, feeds) from None
    if not allocate_outputs:
        values = binding.get_outputs()
        binding.clear_binding_outputs()
        for output, value in zip(outputs, values, strict=True):
            binding.bind_ortvalue_output(output.name, value)
    return bound


def _allocate(output: Any, device: str, device_id: int) -> Any:
    if not all(isinstance(size, int) for size in output.shape):
        raise QConvertError(
            f"a CUDA graph needs fixed shapes, the output `{output.name}` has {output.shape}",
            hint="leave out `cuda-graph`",
        )
    # The type reads `tensor(float16)`.
    dtype = ir.DataType[output.type.removeprefix("tensor(").removesuffix(")").upper()].numpy()
    return runtime.OrtValue.ortvalue_from_shape_and_type(output.shape, dtype, device, device_id)


@dataclass(frozen=True)
class OrtSession:
    """A session of an engine on `device`.

    With `cuda_graph`, every run replays the first one on the same memory, which `bindings` holds.
    """

    session: Any
    read_coverage: Callable[[], Coverage]
    device: str = "cpu"
    device_id: int = 0
    cuda_graph: bool = False
    bindings: list[BoundSession] = field(default_factory=list, repr=False, compare=False)

    def run(self, feeds: Tensors) -> Tensors:
        """Run once, with all copies to and from the device."""
        if self.cuda_graph:
            bound = self._bind_graph(feeds)
            bound.run()
            return bound.outputs()
        return _run(self.session, feeds)

    def bind(self, feeds: Tensors) -> Callable[[], None] | None:
        """Put inputs on the device and return a call that runs on them; None on the CPU."""
        if self.device == "cpu":
            return None
        if self.cuda_graph:
            return self._bind_graph(feeds).run
        return self._bind(feeds, allocate_outputs=False).run

    def coverage(self) -> Coverage:
        """Return which provider and which precision run the nodes."""
        return self.read_coverage()

    def _bind_graph(self, feeds: Tensors) -> BoundSession:
        if self.bindings:
            self.bindings[0].update_inputs(feeds)
        else:
            self.bindings.append(self._bind(feeds, allocate_outputs=True))
        return self.bindings[0]

    def _bind(self, feeds: Tensors, *, allocate_outputs: bool) -> BoundSession:
        return bind_session(
            self.session, feeds, self.device, self.device_id, allocate_outputs=allocate_outputs
        )


def session_options(spec: LoadSpec) -> Any:
    """Return the options of a session, which records the provider of every node."""
    options = runtime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = spec.threads
    options.graph_optimization_level = OPTIMIZE_ALL if spec.optimize_graph else OPTIMIZE_NONE
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in spec.config_entries.items():
        options.add_session_config_entry(key, value)
    if spec.integer_kernels:
        options.add_session_config_entry("session.x64quantprecision", x64_quant_precision())
    return options


def create_session(path: Path, spec: LoadSpec, options: Any = None) -> Any:
    """Load a file according to `spec`, and refuse to fall back to other providers."""
    options = options or session_options(spec)
    provider, provider_options = spec.providers[0]
    providers: list[Any] | None = spec.provider_list
    if spec.plugin:
        devices = _plugin_devices(spec.plugin, provider)[:1]
        options.add_provider_for_devices(devices, dict(provider_options))
        providers = None
    try:
        session = runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exception classes have no public base
        raise QConvertError(
            f"{provider} cannot load `{path.name}`: {error_message(error)}",
            hint="`qconvert inspect` shows its operators; `qconvert doctor` what works here",
        ) from None
    if spec.plugin:
        return session
    session.disable_fallback()
    if provider not in session.get_providers():
        # Python's InferenceSession falls back to the CPU when a provider does not start.
        raise QConvertError(
            f"ONNX Runtime did not start {provider}", hint="`qconvert doctor` shows what is missing"
        )
    return session


@cache
def _plugin_devices(module: str, provider: str) -> Sequence[Any]:
    """Register a provider plugin, once in a process, and return the devices that it drives."""
    plugin = import_module(module)
    runtime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    devices = [device for device in runtime.get_ep_devices() if device.ep_name == provider]
    if not devices:
        raise Unavailable(
            f"the plugin of {provider} found no device",
            hint="`qconvert doctor` shows what it needs",
        )
    return devices


def preload_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries that lie in Python packages."""
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


def nodes_by_provider(session: Any) -> dict[str, list[str]]:
    """Return the nodes that each provider took, as operator and name."""
    nodes: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        nodes.setdefault(part.ep_name, []).extend(names)
    return nodes


def count_nodes(nodes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many nodes each provider took."""
    return {provider: len(names) for provider, names in nodes.items()}


def kernel_coverage(path: Path, spec: LoadSpec) -> Coverage:
    """Count the kernels of a file that the first provider runs whole, by precision."""
    options = session_options(spec)
    with atomic.system_temporary_folder() as folder:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        # Weights go to another file: they are not read, and above 2 GB ONNX cannot hold them.
        external = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(external + "file_name", "weights")
        options.add_session_config_entry(external + "min_size_in_bytes", "1024")
        create_session(path, spec, options)
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    model = ir.from_proto(optimized)
    return Coverage({spec.providers[0][0]: len(list(model.graph))}, kernel_precisions(model))


def _open(model: bytes | str, options: Any) -> RunModel:
    try:
        session = runtime.InferenceSession(model, options, providers=[CPU])
    except Exception as error:  # its exception classes have no public base
        raise QConvertError(
            f"ONNX Runtime cannot load this model: {error_message(error)}",
            hint="`qconvert inspect` shows its operators and opset",
        ) from None
    return lambda feeds: _run(session, feeds)


def _run(session: Any, feeds: Tensors) -> Tensors:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # its exception classes have no public base
        raise run_error(error, feeds) from None


def _is_symmetric(quantizer: ir.Node) -> bool:
    value = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    zero_point = ir.convenience.get_const_tensor(value) if value is not None else None
    return (
        zero_point is not None
        and zero_point.dtype is ir.DataType.INT8
        and not zero_point.numpy().any()
    )
