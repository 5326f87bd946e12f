"""ONNX Runtime on the CPU: the reference every other engine is held against."""

from typing import Any

import onnx_ir as ir

from qconvert import drafts, onnx_io
from qconvert.backends.installed import integer_instructions
from qconvert.errors import QConvertError, Unavailable, reason
from qconvert.feeds import Feeds, Run

try:
    import onnxruntime
except ModuleNotFoundError:
    raise Unavailable(
        "this needs ONNX Runtime, which is not installed",
        hint='pip install "qconvert[cpu]", or [cuda], [tensorrt] or [tensorrt-rtx] on a GPU host',
    ) from None

# For modules beside this one: who imports it from here is told when it is not there.
runtime: Any = onnxruntime
VERSION = str(onnxruntime.__version__)

# What goes wrong comes as an exception; the log would say it again on stderr.
SILENT = 4
runtime.set_default_logger_severity(SILENT)
# It brings a client that reports to its makers; nothing leaves this machine.
runtime.disable_telemetry_events()


def open_cpu(model: ir.Model, threads: int = 0, *, literal: bool = False) -> Run:
    """Load a model on the CPU provider and return the function that runs it.

    `threads` of 0 takes one for each core. What is `literal` is run node by node as it says, Q/DQ
    nodes too, which otherwise become integer kernels where that is right.
    """
    literal = literal or has_float_biases(model)
    if onnx_io.weight_bytes(model) < onnx_io.IN_MEMORY_BYTES:
        return _open(onnx_io.serialize(model), threads, literal=literal)
    with drafts.temporary() as folder:
        path = folder / "model.onnx"
        onnx_io.save(model, path, apart=True)
        return _open(str(path), threads, literal=literal)


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


def _open(model: bytes | str, threads: int, *, literal: bool) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    # Idle threads that spin take the cores from those that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", exact_integers())
    options.add_session_config_entry("session.disable_quant_qdq", str(int(literal)))
    # Planned buffers are no faster here, and a third larger.
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"ONNX Runtime cannot load this model: {message(error)}",
            hint="`qconvert inspect` shows its operators and opset",
        ) from None
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Feeds:
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            raise cannot_run(error, feeds) from None

    return run


def exact_integers() -> str:
    """Return what `session.x64quantprecision` must be on this CPU.

    Without 1 CPUs that lack VNNI overflow in 16 bits, silently. On others it changes no number and
    turns weights into unsigned ones, for which they have no VNNI kernel: EfficientNet-Lite0 took
    8.4 ms instead of 3.9 ms (one thread of an EPYC with VNNI, ONNX Runtime 1.31).
    """
    return "0" if integer_instructions() else "1"


def cannot_run(error: Exception, feeds: Feeds) -> QConvertError:
    """Return what to raise when a session fails on these inputs."""
    shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
    return QConvertError(
        f"ONNX Runtime cannot run this model on {shapes}: {message(error)}",
        hint="if a size was guessed wrong, say it with `--input NAME:SHAPE`",
    )


def message(error: Exception) -> str:
    """Drop the codes and file names that ONNX Runtime puts before its sentence."""
    text = reason(error, limit=1000)
    for noise in ("[ONNXRuntimeError] : ", "Load model from "):
        text = text.replace(noise, "")
    return reason(ValueError(text.split(" : ", 2)[-1]), limit=240)
