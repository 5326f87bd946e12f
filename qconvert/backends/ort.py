"""ONNX Runtime on the CPU: the reference every other engine is held against."""

import tempfile
from pathlib import Path

import onnx_ir as ir

from qconvert import onnx_io
from qconvert.errors import QConvertError, Unavailable, reason
from qconvert.feeds import Feeds, Run

try:
    import onnxruntime
except ModuleNotFoundError:
    raise Unavailable(
        "this needs ONNX Runtime, which is not installed",
        hint='pip install "qconvert[cpu]", or [cuda], [tensorrt] or [tensorrt-rtx] on a GPU host',
    ) from None

VERSION = str(onnxruntime.__version__)

# What goes wrong comes as an exception; the log would say it again on stderr.
SILENT = 4


def open_cpu(model: ir.Model, threads: int = 0) -> Run:
    """Load a model on the CPU provider and return the function that runs it.

    `threads` of 0 takes one for each core.
    """
    if onnx_io.weight_bytes(model) < onnx_io.SINGLE_FILE_BYTES:
        return _open(onnx_io.serialize(model), threads)
    with tempfile.TemporaryDirectory(prefix="qconvert-") as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(model, path)
        return _open(str(path), threads)


def _open(model: bytes | str, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    # Idle threads that spin take the cores from those that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it CPUs that lack VNNI overflow in 16 bits, silently; on others it changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Planned buffers are no faster here, and a third larger.
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no public base
        raise QConvertError(
            f"ONNX Runtime cannot load this model: {_message(error)}",
            hint="`qconvert inspect` shows its operators and opset",
        ) from None
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Feeds:
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            raise QConvertError(
                f"ONNX Runtime cannot run this model on {shapes}: {_message(error)}",
                hint="if a size was guessed wrong, say it with `--input NAME:SHAPE`",
            ) from None

    return run


def _message(error: Exception) -> str:
    """Drop the codes and file names that ONNX Runtime puts before its sentence."""
    text = reason(error, limit=1000)
    for noise in ("[ONNXRuntimeError] : ", "Load model from "):
        text = text.replace(noise, "")
    return reason(ValueError(text.split(" : ", 2)[-1]), limit=240)
