"""Whether a provider really runs: one tiny network through it, in a process of its own.

A driver or library that does not fit can take the whole process down, so the try is a child.
"""

import subprocess
import sys

from qconvert.backends import apart

TIMEOUT_SECONDS = 120

_TRY = """
import sys
import numpy, onnx, onnxruntime
from onnx import helper, TensorProto
name = sys.argv[1]
graph = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["y"])], "try",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
if name not in onnxruntime.get_available_providers():
    sys.exit(f"this ONNX Runtime was built without {name}")
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
if name == "TensorrtExecutionProvider":
    import tensorrt  # brings libnvinfer into the process, where the provider finds it
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
if name != "CPUExecutionProvider":
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[name])
session.disable_fallback()
if session.get_providers()[0] != name:
    sys.exit(f"{name} did not load")
out = session.run(None, {"x": numpy.array([[-1, 0, 1, 2]], numpy.float32)})[0]
if out.tolist() != [[0, 0, 1, 2]]:
    sys.exit(f"{name} computes wrong numbers: {out.tolist()}")
"""


def why_not(provider: str) -> str:
    """Return nothing when the provider runs a network here, else the reason."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRY, provider],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{provider} did not answer within {TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"{provider} did not work: {apart.death(done.returncode)}"
    return apart.death(done.returncode, said)
