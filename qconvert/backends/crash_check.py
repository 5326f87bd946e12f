"""The first load and run of a graph, in a process of its own.

ONNX Runtime is native code: a graph that its writer did not mean to be run, or meant to do harm,
can crash it, take all memory, or never come to an end, and Python hears of none of these. So what
nobody has run here before is tried by a child, once for each model. That costs 0.2 s of one core,
for a Python that imports ONNX Runtime, one load and one run.
"""

import contextlib
import hashlib
import io
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert.backends import subprocess_worker
from qconvert.core import atomic, onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.tensors import Tensors

# A graph without loops comes to an end; how soon, its size does not tell.
LOOP_OPERATORS = ("Loop", "Scan")
LOOPING_SECONDS, WEIGHTY_SECONDS, LASTING_SECONDS = 20.0, 1e-7, 1800.0

_passed: set[str] = set()

_CHILD = """
import io, sys
import numpy, onnxruntime
given = sys.stdin.buffer
feeds = dict(numpy.load(io.BytesIO(given.read(int(sys.argv[1]))), allow_pickle=False))
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
model = sys.argv[2] if len(sys.argv) > 2 else given.read()
try:
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if feeds:
        session.run(None, feeds)
except Exception:
    pass  # said again, in words, where the graph is loaded for good
"""


def check_for_crash(model: ir.Model, feeds: Tensors) -> None:
    """Load a graph in a child, and run it once unless `feeds` is empty; refuse what ends it."""
    if onnx_io.weight_bytes(model) < onnx_io.IN_MEMORY_BYTES:
        _try(_packed(feeds), onnx_io.serialize(model), time_limit_seconds(model))
        return
    with atomic.system_temporary_folder() as folder:
        path = folder / "model.onnx"
        onnx_io.save(model, path, external=True)
        check_file_for_crash(path, feeds, time_limit_seconds(model))


def check_file_for_crash(path: Path, feeds: Tensors, seconds: float) -> None:
    """Do so with a file as it stands."""
    _try(_packed(feeds), path.absolute(), seconds)


def time_limit_seconds(model: ir.Model) -> float:
    """Return how many seconds one load and run may take."""
    if not any(node.op_type in LOOP_OPERATORS for node in onnx_io.all_nodes(model)):
        return LASTING_SECONDS
    return LOOPING_SECONDS + WEIGHTY_SECONDS * onnx_io.weight_bytes(model)


def _packed(feeds: Tensors) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **feeds)  # type: ignore[arg-type]
    return packed.getvalue()


def _try(feeds: bytes, model: bytes | Path, seconds: float) -> None:
    """Refuse a model that ends the child; what survived once in this process is not tried again."""
    content = model if isinstance(model, bytes) else os.fsencode(model)
    digest = hashlib.sha256(feeds)
    digest.update(content)
    if (key := digest.hexdigest()) in _passed:
        return
    by_name = [str(model)] if isinstance(model, Path) else []
    given = (feeds,) if by_name else (feeds, content)
    with tempfile.TemporaryFile() as log:
        with subprocess_worker.start_python(
            _CHILD, str(len(feeds)), *by_name, stderr=log.fileno()
        ) as child:
            code = _ended(child, given, seconds)
        log.seek(0)
        said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if code < 0:
        raise QConvertError(
            f"ONNX Runtime does not survive this model: {subprocess_worker.describe_exit(code)}",
            details=said[-3:],
            hint="export it again; an honest graph that does this is a bug of ONNX Runtime",
        )
    _passed.add(key)


def _ended(child: "subprocess.Popen[bytes]", given: Sequence[bytes], seconds: float) -> int:
    """Return how a child ended that was given some bytes."""
    assert child.stdin is not None
    try:
        # One after the other: a model of almost 2 GB is not copied to stand behind its inputs.
        with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
            for each in given:
                stdin.write(each)
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        raise QConvertError(
            f"the model did not come to an end within {seconds:.0f} s",
            hint="it has loops; one of them may never stop for these inputs",
        ) from None
    finally:
        child.kill()
