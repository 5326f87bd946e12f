"""Load and run an unknown graph once in a child process before running it in this one.

ONNX Runtime is native code: a broken or malicious graph can crash it, exhaust memory, or never
finish, and Python cannot catch any of these. A child therefore tries every model once. That costs 0.2 s
of one core: starting Python, importing ONNX Runtime, one load and one run.
"""

import hashlib
import io
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert.backends import subprocess_worker
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors

# A graph without loops always finishes; its size does not tell how soon.
LOOP_SECONDS, SECONDS_PER_BYTE, MAX_SECONDS = 20.0, 1e-7, 1800.0

# Hashes of what passed in this process.
_passed: set[str] = set()

_CHILD = """
import io, sys
import numpy, onnxruntime
data = sys.stdin.buffer
feeds = dict(numpy.load(io.BytesIO(data.read(int(sys.argv[1]))), allow_pickle=False))
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
model = sys.argv[2] if len(sys.argv) > 2 else data.read()
try:
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if feeds:
        session.run(None, feeds)
except Exception:
    pass  # the parent gets the same error, with a message, when it loads the graph
"""


def check_for_crash(model: ir.Model, feeds: Tensors, path: Path | None = None) -> None:
    """Refuse a model that crashes or hangs ONNX Runtime; empty `feeds` only load it.

    `path` is a file to load instead, whose inputs and loops are those of the model.
    """
    if path is None and onnx_io.weight_bytes(model) >= onnx_io.IN_MEMORY_BYTES:
        with atomic.temporary_folder() as folder:
            onnx_io.save(model, folder / "model.onnx", external=True)
            check_for_crash(model, feeds, folder / "model.onnx")
        return
    buffer = io.BytesIO()
    np.savez(buffer, **feeds)  # type: ignore[arg-type]
    inputs = buffer.getvalue()
    stdin = inputs + (onnx_io.serialize(model) if path is None else b"")
    names = [] if path is None else [str(path.absolute())]
    digest = hashlib.sha256(stdin)
    digest.update(os.fsencode("".join(names)))
    if (key := digest.hexdigest()) in _passed:
        return
    seconds = time_limit_seconds(model)
    try:
        child = subprocess_worker.run_python(
            _CHILD, str(len(inputs)), *names, seconds=seconds, stdin=stdin
        )
    except subprocess.TimeoutExpired:
        raise QConvertError(
            f"the model did not finish within {seconds:.0f} s",
            hint="it has loops; one of them may never stop for these inputs",
        ) from None
    if child.code < 0:
        raise QConvertError(
            f"ONNX Runtime crashed on this model: {child.failure}",
            details=child.error_lines[-3:],
            hint="export it again; if the model is valid, report it to ONNX Runtime",
        )
    _passed.add(key)


def time_limit_seconds(model: ir.Model) -> float:
    """Return how long one load and run may take."""
    if not any(node.op_type in ("Loop", "Scan") for node in onnx_io.all_nodes(model)):
        return MAX_SECONDS
    return LOOP_SECONDS + SECONDS_PER_BYTE * onnx_io.weight_bytes(model)
