"""ONNX Runtime on the CPU: the reference every other engine is held against."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from qconvert.backends.base import Coverage
from qconvert.backends.precision_coverage import kernel_precisions
from qconvert.backends.system_probe import integer_instructions
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError, Unavailable, first_line
from qconvert.core.tensors import RunModel, Tensors

try:
    import onnxruntime
except ModuleNotFoundError:
    raise Unavailable(
        "this needs ONNX Runtime, which is not installed",
        hint='pip install "qconvert[cpu]", or [cuda], [tensorrt] or [tensorrt-rtx] on a GPU host',
    ) from None

# For modules beside this one: who imports it from here is told when it is not there.
runtime: Any = onnxruntime
ORT_VERSION = str(onnxruntime.__version__)

# What goes wrong comes as an exception; the log would say it again on stderr.
SILENT = 4
runtime.set_default_logger_severity(SILENT)
# It brings a client that reports to its makers; nothing leaves this machine.
runtime.disable_telemetry_events()


def open_cpu(model: ir.Model, threads: int = 0, *, keep_qdq: bool = False) -> RunModel:
    """Load a model on the CPU provider and return the function that runs it.

    `threads` of 0 takes one for each core. What is `literal` is run node by node as it says, Q/DQ
    nodes too, which otherwise become integer kernels where that is right.
    """
    keep_qdq = keep_qdq or has_float_biases(model)
    if onnx_io.weight_bytes(model) < onnx_io.IN_MEMORY_BYTES:
        return _open_session(onnx_io.serialize(model), threads, literal=keep_qdq)
    with atomic.system_temporary_folder() as folder:
        path = folder / "model.onnx"
        onnx_io.save(model, path, external=True)
        return _open_session(str(path), threads, literal=keep_qdq)


def has_float_biases(model: ir.Model) -> bool:
    """Whether a model is quantized as TensorRT wants it: symmetric, and biases left in float.

    ONNX Runtime 1.31 makes integers of such biases, which overflow where a bias is large beside its
    scales, and are nonsense where scales are in half precision. It computes what the graph says
    with `session.disable_quant_qdq`, which leaves Q/DQ nodes as they are.
    """
    rounding = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    return bool(rounding) and all(_is_symmetric(node) for node in rounding)


def _is_symmetric(node: ir.Node) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = ir.convenience.get_const_tensor(value) if value is not None else None
    return zero is not None and zero.dtype is ir.DataType.INT8 and not zero.numpy().any()


def _open_session(model: bytes | str, threads: int, *, literal: bool) -> RunModel:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    # Idle threads that spin take the cores from those that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", x64_quant_precision())
    options.add_session_config_entry("session.disable_quant_qdq", str(int(literal)))
    # Planned buffers are no faster here, and a third larger.
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"ONNX Runtime cannot load this model: {error_message(error)}",
            hint="`qconvert inspect` shows its operators and opset",
        ) from None
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Tensors) -> Tensors:
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            raise run_error(error, feeds) from None

    return run


def x64_quant_precision() -> str:
    """Return what `session.x64quantprecision` must be on this CPU.

    Without 1 CPUs that lack VNNI overflow in 16 bits, silently. On others it changes no number and
    turns weights into unsigned ones, for which they have no VNNI kernel: EfficientNet-Lite0 took
    8.4 ms instead of 3.9 ms (one thread of an EPYC with VNNI, ONNX Runtime 1.31).
    """
    return "0" if integer_instructions() else "1"


def run_error(error: Exception, feeds: Tensors) -> QConvertError:
    """Return what to raise when a session fails on these inputs."""
    shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
    return QConvertError(
        f"ONNX Runtime cannot run this model on {shapes}: {error_message(error)}",
        hint="if a size was guessed wrong, say it with `--input NAME:SHAPE`",
    )


def error_message(error: Exception) -> str:
    """Drop the codes and file names that ONNX Runtime puts before its sentence."""
    text = first_line(error, limit=1000)
    for noise in ("[ONNXRuntimeError] : ", "Load model from "):
        text = text.replace(noise, "")
    return first_line(ValueError(text.split(" : ", 2)[-1]), limit=240)


TENSOR_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class BoundSession:
    """A session with the memory that it reads and writes."""

    session: Any
    binding: Any
    inputs: Mapping[str, Any]

    def run(self) -> None:
        """Run once; ONNX Runtime waits for the device at the end."""
        self.session.run_with_iobinding(self.binding)

    def update_inputs(self, feeds: Tensors) -> None:
        """Copy other values into the inputs' memory."""
        for name, array in feeds.items():
            self.inputs[name].update_inplace(array)

    def outputs(self) -> Tensors:
        """Copy what the last run left off the device."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.binding.copy_outputs_to_cpu(), strict=True))


def bind_dynamic(session: Any, feeds: Tensors, device: str, number: int) -> BoundSession:
    """Put inputs on the device, run once, and let later runs write where this one did."""
    bound = _with_inputs(session, feeds, device, number)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        bound.binding.bind_output(name, device, number)
    _first_run(bound, feeds)
    made = bound.binding.get_outputs()
    bound.binding.clear_binding_outputs()
    for name, value in zip(names, made, strict=True):
        bound.binding.bind_ortvalue_output(name, value)
    return bound


def bind_static(session: Any, feeds: Tensors, device: str, number: int) -> BoundSession:
    """Give inputs and outputs their memory before the first run, which a CUDA graph records."""
    bound = _with_inputs(session, feeds, device, number)
    for output in session.get_outputs():
        if output.type not in TENSOR_TYPES or not all(
            isinstance(size, int) for size in output.shape
        ):
            raise QConvertError(
                f"a CUDA graph needs fixed shapes, the output `{output.name}` has {output.shape}",
                hint="leave out `cuda-graph`",
            )
        value = runtime.OrtValue.ortvalue_from_shape_and_type(
            output.shape, TENSOR_TYPES[output.type], device, number
        )
        bound.binding.bind_ortvalue_output(output.name, value)
    _first_run(bound, feeds)
    return bound


def _with_inputs(session: Any, feeds: Tensors, device: str, number: int) -> BoundSession:
    inputs = {
        name: runtime.OrtValue.ortvalue_from_numpy(array, device, number)
        for name, array in feeds.items()
    }
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    return BoundSession(session, binding, inputs)


def _first_run(bound: BoundSession, feeds: Tensors) -> None:
    try:
        bound.run()
    except Exception as error:  # its exception classes share no public base
        raise run_error(error, feeds) from None


Providers = Sequence[str | tuple[str, Mapping[str, str]]]
OPTIMIZE_ALL = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
OPTIMIZE_EXTENDED = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
OPTIMIZE_NONE = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL


@dataclass(frozen=True)
class OrtSession:
    """A session that runs on `device`.

    With `captured` its runs are replays of the first one, a CUDA graph, which reads and writes the
    same memory each time: `held` keeps that.
    """

    session: Any
    read_coverage: Callable[[], Coverage]
    device: str = "cpu"
    device_id: int = 0
    cuda_graph: bool = False
    bindings: list[BoundSession] = field(default_factory=list, repr=False, compare=False)

    def run(self, feeds: Tensors) -> Tensors:
        """Run once, with all copies that takes."""
        if self.cuda_graph:
            bound = self._replayed(feeds)
            bound.run()
            return bound.outputs()
        names = [output.name for output in self.session.get_outputs()]
        try:
            return dict(zip(names, self.session.run(names, feeds), strict=True))
        except Exception as error:  # its exception classes share no public base
            raise run_error(error, feeds) from None

    def bind(self, feeds: Tensors) -> Callable[[], None] | None:
        """Return a call that runs once on inputs already on the device; None on the CPU."""
        if self.device == "cpu":
            return None
        if self.cuda_graph:
            return self._replayed(feeds).run
        return bind_dynamic(self.session, feeds, self.device, self.device_id).run

    def coverage(self) -> Coverage:
        """Say what really runs where."""
        return self.read_coverage()

    def _replayed(self, feeds: Tensors) -> BoundSession:
        if self.bindings:
            self.bindings[0].update_inputs(feeds)
        else:
            self.bindings.append(bind_static(self.session, feeds, self.device, self.device_id))
        return self.bindings[0]


def session_options(
    threads: int = 0, entries: Mapping[str, str] | None = None, level: Any = OPTIMIZE_ALL
) -> Any:
    """Return session options that say which node went to which provider."""
    made = runtime.SessionOptions()
    made.log_severity_level = SILENT
    made.intra_op_num_threads = threads
    made.graph_optimization_level = level
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in (entries or {}).items():
        made.add_session_config_entry(key, value)
    return made


def create_session(path: Path, chosen: Any, providers: Providers) -> Any:
    """Load a file on these providers, or say why not; it never turns to others by itself."""
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    try:
        session = runtime.InferenceSession(str(path), chosen, providers=list(providers))
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"{first} cannot load `{path.name}`: {error_message(error)}",
            hint="`qconvert inspect` shows its operators; `qconvert doctor` what works here",
        ) from None
    session.disable_fallback()
    if first not in session.get_providers():
        # Python's InferenceSession turns to the CPU when a provider does not start.
        raise QConvertError(
            f"ONNX Runtime did not start {first}", hint="`qconvert doctor` says what is missing"
        )
    return session


def preload_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries of Python packages, where the runtime knows of such."""
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


def nodes_by_provider(session: Any) -> dict[str, list[str]]:
    """Return the nodes that each provider took, each as its operator and its name."""
    taken: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = [f"{node.op_type} {node.name}".strip() for node in part.get_nodes()]
        taken.setdefault(part.ep_name, []).extend(names)
    return taken


def optimized_graph(path: Path, chosen: Any, providers: Providers) -> ir.Model:
    """Return the graph into which ONNX Runtime rewrites a file on these providers."""
    with atomic.system_temporary_folder() as folder:
        chosen.optimized_model_filepath = str(folder / "optimized.onnx")
        # Weights apart: they are not read here, and above 2 GB they do not fit inside.
        apart = "session.optimized_model_external_initializers_"
        chosen.add_session_config_entry(apart + "file_name", "weights")
        chosen.add_session_config_entry(apart + "min_size_in_bytes", "1024")
        create_session(path, chosen, providers)
        return ir.from_proto(onnx.load(chosen.optimized_model_filepath, load_external_data=False))


def kernel_coverage(path: Path, chosen: Any, providers: Providers) -> Coverage:
    """Count the kernels of a file that one provider runs whole, by precision."""
    graph = optimized_graph(path, chosen, providers)
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    return Coverage({first: len(list(graph.graph))}, kernel_precisions(graph))


def count_nodes(taken: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many nodes each provider took."""
    return dict(Counter({name: len(nodes) for name, nodes in taken.items()}))
