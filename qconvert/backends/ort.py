"""ONNX Runtime sessions: the CPU reference that all engines are compared with, and engines."""

import ctypes
import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from qconvert.backends import subprocess_worker
from qconvert.backends.base import Coverage, LoadSpec, Profile, choose_profile
from qconvert.backends.cuda_runtime import BoundRun
from qconvert.backends.int8_class import int8_class
from qconvert.backends.subprocess_worker import Report
from qconvert.backends.system_probe import FULL_GPU
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError, Unavailable, first_line
from qconvert.core.pip_command import pip_install
from qconvert.core.tensors import RunModel, Tensors
from qconvert.quantize.saturation import is_pair_safe

try:
    import onnxruntime
except ModuleNotFoundError:
    raise Unavailable(
        "ONNX Runtime is not installed",
        hint=f"{pip_install('cpu')}, or [cuda], [tensorrt] or [tensorrt-rtx] on a GPU host",
    ) from None

# Modules beside this one import it from here, for the error above.
runtime: Any = onnxruntime
ORT_VERSION = str(onnxruntime.__version__)

# Failures arrive as exceptions; the log would repeat them on stderr. Child processes log warnings:
# what TensorRT and CUDA say goes nowhere else.
SILENT, WARNINGS = 4, 2
runtime.set_default_logger_severity(SILENT)
# no data leaves this machine
runtime.disable_telemetry_events()

CPU = "CPUExecutionProvider"
DRM_FOLDER = "/sys/class/drm"


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
    safe = is_pair_safe(model)
    spec = LoadSpec(((CPU, {}),), (), entries, threads=threads, may_saturate=not safe)
    options = session_options(spec)
    # Planned buffers are no faster here, and a third larger.
    options.enable_mem_pattern = False
    with ExitStack() as stack:
        content: bytes | str
        if onnx_io.weight_bytes(model) < onnx_io.IN_MEMORY_BYTES:
            content = onnx_io.serialize(model)
        else:
            path = stack.enter_context(atomic.temporary_folder()) / "model.onnx"
            onnx_io.save(model, path, external=True)
            content = str(path)
        try:
            session = runtime.InferenceSession(content, options, providers=[CPU])
        except Exception as error:  # its exception classes have no public base
            raise QConvertError(
                f"ONNX Runtime cannot load this model: {_message(error)}",
                hint="`qconvert inspect` shows its operators and opset",
            ) from None
    return lambda feeds: _run(session, feeds)


def has_float_biases(model: ir.Model) -> bool:
    """Whether a model is quantized for TensorRT: symmetric activations, biases left in float.

    ONNX Runtime 1.31 quantizes such biases, which overflows where a bias is large relative to its
    scales, and is wrong where scales are in half precision. With
    `session.disable_quant_qdq` it leaves Q/DQ nodes alone and computes the graph as written.
    """
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    for node in quantizers:
        value = node.inputs[2] if len(node.inputs) > 2 else None
        zero_point = ir.convenience.get_const_tensor(value) if value is not None else None
        if zero_point is None or zero_point.dtype is not ir.DataType.INT8:
            return False
        if zero_point.numpy().any():
            return False
    return bool(quantizers)


@dataclass(frozen=True)
class OrtSession:
    """A session of an engine on `device`.

    With `cuda_graph`, every run replays the first one on the same memory, which `bindings` holds.
    All work of a GPU is on `stream`. The memory of a plugin's device is known by `vendor_id`.
    """

    session: Any
    coverage: Callable[[], Coverage]
    device: str = "cpu"
    device_id: int = 0
    cuda_graph: bool = False
    stream: int = 0
    vendor_id: int | None = None
    profiles: Sequence[Profile] = ()
    profile_entry: str = ""
    bindings: list[tuple[Any, dict[str, Any]]] = field(default_factory=list, compare=False)

    def run(self, feeds: Tensors) -> Tensors:
        """Run once, with all copies to and from the device."""
        options = self.run_options(feeds)
        if not self.cuda_graph:
            return _run(self.session, feeds, options)
        binding, _ = self.bind_memory(feeds)
        self.session.run_with_iobinding(binding, options)
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def bind(self, feeds: Tensors) -> BoundRun | None:
        """Put inputs on the GPU and return the run on them; None where none is bound.

        ONNX Runtime puts the run on our stream, and is told not to wait for it.
        """
        if not self.stream:
            return None
        binding, inputs = self.bind_memory(feeds)
        options = self.run_options(feeds) or runtime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        outputs = [
            (value.data_ptr(), value.tensor_size_in_bytes()) for value in binding.get_outputs()
        ]
        sizes = [(inputs[name].data_ptr(), array.nbytes) for name, array in feeds.items()]
        enqueue = partial(self.session.run_with_iobinding, binding, options)
        return BoundRun(enqueue, self.stream, sizes, outputs, (binding, inputs))

    def run_options(self, feeds: Tensors) -> Any:
        """Return the options of a run, None without profiles: the one tuned closest to its batch."""
        if not self.profiles:
            return None
        batch = len(next(iter(feeds.values())))
        number = choose_profile(self.profiles, batch)
        if number is None:
            raise QConvertError(
                f"no profile of the engine takes a batch of {batch}: "
                + ", ".join(f"`{profile}`" for profile in self.profiles),
                hint="build it again with a `--profile` that does",
            )
        options = runtime.RunOptions()
        options.add_run_config_entry(self.profile_entry, str(number))
        return options

    def bind_memory(self, feeds: Tensors) -> tuple[Any, dict[str, Any]]:
        """Put inputs on the device and run once; runs of the binding write to the same memory.

        A CUDA graph records the first run: its outputs need their memory before, and fixed shapes.
        """
        for binding, inputs in self.bindings:  # at most one
            for name, array in feeds.items():
                inputs[name].update_inplace(array)
            return binding, inputs
        place: tuple[str | int, ...] = (self.device, self.device_id)
        if self.vendor_id is not None:
            place = (*place, self.vendor_id)
        binding, outputs = self.session.io_binding(), self.session.get_outputs()
        options, shapes = self.run_options(feeds), self._output_shapes(feeds)
        inputs = {
            name: runtime.OrtValue.ortvalue_from_numpy(array, *place)
            for name, array in feeds.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for output, shape in zip(outputs, shapes, strict=True):
            if shape is None:
                binding.bind_output(output.name, *place)
                continue
            # The type reads `tensor(float16)`.
            dtype = ir.DataType[output.type.removeprefix("tensor(").removesuffix(")").upper()]
            value = runtime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.numpy(), *place)
            binding.bind_ortvalue_output(output.name, value)
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:  # its exception classes have no public base
            raise _run_error(error, feeds) from None
        if self.cuda_graph:
            self.bindings.append((binding, inputs))
            return binding, inputs
        values = binding.get_outputs()
        binding.clear_binding_outputs()
        for output, value in zip(outputs, values, strict=True):
            binding.bind_ortvalue_output(output.name, value)
        return binding, inputs

    def _output_shapes(self, feeds: Tensors) -> list[list[int] | None]:
        """Return the shapes of outputs whose memory must be there before a run, None for others.

        ONNX Runtime allocates outputs itself, but not in the memory of a plugin's device.
        """
        outputs = self.session.get_outputs()
        for output in outputs if self.cuda_graph else ():
            if not all(isinstance(size, int) for size in output.shape):
                text = f"the output `{output.name}` has {output.shape}"
                raise QConvertError(
                    f"a CUDA graph needs fixed shapes, {text}", hint="leave out `cuda-graph`"
                )
        if self.cuda_graph:
            return [output.shape for output in outputs]
        if self.vendor_id is None:
            return [None] * len(outputs)
        arrays = _run(self.session, feeds, self.run_options(feeds))
        return [list(arrays[output.name].shape) for output in outputs]


def session_options(spec: LoadSpec, severity: int = SILENT) -> Any:
    """Return the options of a session, which records the provider of every node."""
    options = runtime.SessionOptions()
    options.log_severity_level = severity
    # Providers use the log of the process, which onnxslim turns on.
    runtime.set_default_logger_severity(severity)
    options.intra_op_num_threads = spec.threads
    if not spec.optimize_graph:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in spec.config_entries.items():
        options.add_session_config_entry(key, value)
    if spec.may_saturate:
        # Without 1, CPUs that lack VNNI silently overflow in 16 bits. On others, 1 changes no number
        # but makes weights unsigned, for which they have no VNNI kernel: EfficientNet-Lite0 took
        # 8.4 ms instead of 3.9 ms (one thread of an EPYC with VNNI, ONNX Runtime 1.31).
        precision = "1" if int8_class().saturates else "0"
        options.add_session_config_entry("session.x64quantprecision", precision)
    return options


def create_session(path: Path, spec: LoadSpec, options: Any = None, stream: int = 0) -> Any:
    """Load a file according to `spec`, and refuse to fall back to other providers.

    If a GPU provider fails, a child process loads the file again with the messages of TensorRT and
    CUDA on: they name the reason, which ONNX Runtime's exception seldom does.
    """
    try:
        return start_session(path, spec, options or session_options(spec), stream)
    except QConvertError:
        provider = spec.providers[0][0]
        if provider != CPU:
            job = "qconvert.backends.ort:load_with_log"
            subprocess_worker.call(job, path.absolute(), spec, product=provider)
        raise


def start_session(path: Path, spec: LoadSpec, options: Any, stream: int = 0) -> Any:
    """Load a file on the providers of `spec`, the first of which must start; work is on `stream`."""
    provider, provider_options = spec.providers[0]
    own = {"user_compute_stream": str(stream)} if stream else {}
    providers: list[Any] | None = [
        (name, {**values, **({} if name == CPU else own)}) for name, values in spec.providers
    ]
    if spec.plugin:
        device = plugin_device(spec.plugin, provider, spec.device)
        options.add_provider_for_devices([device], {**provider_options, **own})
        providers = None
    elif provider != CPU:
        preload_cuda_libraries()
    for module in spec.modules:  # they take the CUDA libraries that are loaded
        try:
            import_module(module)
        except (ImportError, OSError) as error:
            hint = "`qconvert doctor` shows what is missing"
            raise Unavailable(f"`{module}` does not load: {error}", hint=hint) from None
    try:
        # Python would print the error, and load the file on the CPU.
        session = runtime.InferenceSession(
            str(path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # its exception classes have no public base
        raise _load_error(path, spec, _message(error)) from None
    if not spec.plugin and provider not in session.get_providers():
        raise _load_error(path, spec, "it did not start")
    return session


def _load_error(path: Path, spec: LoadSpec, reason: str, *details: str) -> QConvertError:
    if FULL_GPU.search(reason):
        hint = "`nvidia-smi` shows what uses the memory of the GPU; a smaller batch needs less"
    elif "shared object" in reason:
        hint = "`qconvert doctor` shows the command that installs it"
    else:
        hint = "`qconvert inspect` shows its operators; `qconvert doctor` what works here"
    message = f"{spec.providers[0][0]} cannot load `{path.name}`: {reason}"
    return QConvertError(message, details=details, hint=hint)


def load_with_log(path: Path, spec: LoadSpec, report: Report) -> dict[str, list[str]]:
    """Load a file in a child process and return the nodes of each provider."""
    return nodes_by_provider(start_logged(path, spec))


def start_logged(path: Path, spec: LoadSpec) -> Any:
    """Load a file in a child process; an error carries the reasons that TensorRT and CUDA gave."""
    try:
        return start_session(path, spec, session_options(spec, WARNINGS))
    except QConvertError as error:
        reasons = logged_errors(subprocess_worker.log_of_child())
        if not reasons:
            raise
        raise _load_error(path, spec, reasons[0], *reasons[1:4], str(error)) from None


def logged_errors(log: str) -> list[str]:
    """Return the errors in a log of ONNX Runtime, without times and places, each once."""
    messages: dict[str, None] = {}
    for line in re.sub(r"\x1b\[[\d;]*m", "", log).splitlines():
        if match := re.search(
            r"\[[EF]:onnxruntime:[^\]]*\] (?:\[[^\]]*(?:ERROR|INTERNAL)\w*\] )?(.+)", line
        ):
            messages[_message(RuntimeError(match[1]))] = None
    return list(messages)


def prove_provider(provider: str, report: Report) -> None:
    """Run a tiny network on a provider, which nothing may replace, and check what it computes.

    It holds a convolution, for which CUDA loads cuDNN.
    """
    if provider not in runtime.get_available_providers():
        raise Unavailable(f"this ONNX Runtime was built without {provider}", hint="install another")
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    probe (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
    <float[1, 1, 1, 1] w = {2}> { y = Conv (x, w) }
    """
    path = Path("probe.onnx")
    onnx.save(onnx.parser.parse_model(text), path)
    modules = ("tensorrt",) if provider == "TensorrtExecutionProvider" else ()
    session = start_logged(path, LoadSpec(((provider, {}),), (), modules=modules))
    if set(nodes_by_provider(session)) != {provider}:
        reasons = logged_errors(subprocess_worker.log_of_child())
        raise QConvertError(
            f"{provider} does not run a Conv: {(reasons or ['no reason given'])[0]}", hint=""
        )
    pixels = np.array([[[[-1, 0], [1, 2]]]], np.float32)
    try:
        [output] = session.run(None, {"x": pixels})
    except Exception as error:  # its exception classes have no public base
        raise QConvertError(f"{provider} cannot run a Conv: {_message(error)}", hint="") from None
    if output.tolist() != (2 * pixels).tolist():
        raise QConvertError(f"{provider} computes wrong numbers: {output.tolist()}", hint="")


@cache
def plugin_devices(module: str, provider: str) -> Sequence[Any]:
    """Register a provider plugin, once in a process, and return the devices that it drives."""
    try:
        plugin = import_module(module)
        # Nothing else finds the CUDA runtime that lies beside the plugin under its full version.
        for library in Path(str(plugin.__file__)).parent.glob("libcudart.so.*"):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        runtime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        devices = [device for device in runtime.get_ep_devices() if device.ep_name == provider]
    except Exception as error:  # any, from three packages
        if re.search(r"lib(cuda|nvidia-ml)\.so", str(error)):
            hint = "install the NVIDIA driver; in a container, start it with `--gpus all`"
        else:
            hint = f"pip install --force-reinstall {module.replace('_', '-')}-cu13"
        raise Unavailable(
            f"the plugin of {provider} does not load: {_message(error)}", hint=hint
        ) from None
    if not devices:
        # Linux lists graphics cards in DRM_FOLDER, and ONNX Runtime looks for GPUs there.
        is_listed = any(Path(DRM_FOLDER).glob("card*"))
        reason = "" if is_listed else f": ONNX Runtime looks in {DRM_FOLDER}, which lists no GPU"
        hint = "`nvidia-smi` must list the GPU, and in a container /sys must show it too"
        raise Unavailable(
            f"the plugin of {provider} found no device{reason}",
            hint=hint if is_listed else f"{hint}; on the host, `sudo modprobe nvidia-drm` lists it",
        )
    return devices


def plugin_device(module: str, provider: str, number: int) -> Any:
    """Return a device of a plugin by the number that CUDA gives it; they come in any order."""
    kind = runtime.OrtDeviceMemoryType.DEFAULT
    devices = {
        device.memory_info(kind).device_id: device for device in plugin_devices(module, provider)
    }
    if number not in devices:
        raise Unavailable(
            f"{provider} does not run on GPU {number}",
            hint=f"set `tensorrt-rtx.device` to one of {', '.join(map(str, sorted(devices)))}",
        )
    return devices[number]


def prove_plugin(module: str, provider: str, number: int | None, report: Report) -> None:
    """Register a provider plugin, whose libraries may crash, and find a device, or any.

    What the plugin's package warns of when it is imported ends in crashes later: it is an error.
    """
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(module).addHandler(handler)
    if number is None:
        plugin_devices(module, provider)
    else:
        plugin_device(module, provider, number)
    if warnings:
        # The package makes links to its libraries when it is imported, in its own folder.
        hint = f'sudo {sys.executable} -c "import {module}"'
        raise QConvertError(warnings[0].split(" Fix with: ")[0], hint=hint)


def preload_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries from Python packages."""
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


def nodes_by_provider(session: Any) -> dict[str, list[str]]:
    """Return the nodes that each provider runs, as operator and name."""
    nodes: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        nodes.setdefault(part.ep_name, []).extend(names)
    return nodes


def _run(session: Any, feeds: Tensors, options: Any = None) -> Tensors:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds, options), strict=True))
    except Exception as error:  # its exception classes have no public base
        raise _run_error(error, feeds) from None


def _run_error(error: Exception, feeds: Tensors) -> QConvertError:
    shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
    return QConvertError(
        f"ONNX Runtime cannot run this model on {shapes}: {_message(error)}",
        hint="if a size was guessed incorrectly, set it with `--input NAME:SHAPE`",
    )


def _message(error: Exception) -> str:
    """Drop the codes, files and signatures that ONNX Runtime puts around its sentence."""
    text = first_line(error, limit=4000)
    if match := re.search(r"CU\w+ failure \d+: [^;]+", text):
        return match[0].strip()
    # An error may hold another, which is the reason.
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", text)[-1]
    for noise in (
        "Load model from ",
        r"Failed to load library \S+ with error: ",
        # A file and line, and the signature of a function.
        r"^\S+\.(?:cc|h|cu):\d+ .*\)(?: const)?(?: \[with [^\]]*\])? (?=\S)",
        r"^\[ERROR\] ",
    ):
        text = re.sub(noise, "", text)
    return first_line(ValueError(text), limit=240)
