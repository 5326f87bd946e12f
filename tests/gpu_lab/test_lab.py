"""The laboratory itself: real wheels load the fake libraries, and numbers flow through both."""

import pytest

from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.lab.events import Build, Deserialize, Unanswered

SESSION = """
import sys
import numpy, onnx.parser, onnxruntime
onnxruntime.preload_dlls()
import tensorrt
model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 20]> '
    'net (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
)
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
providers = [sys.argv[1]]
session = onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=providers, enable_fallback=0
)
for rows in (1, 3):
    print(session.run(None, {"x": numpy.array([[-1, 0, 1, 2]] * rows, numpy.float32)})[0].tolist())
"""

NVML = """
import pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(1)
print(pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetName(device))
print(pynvml.nvmlDeviceGetCurrentClocksEventReasons(device), pynvml.nvmlDeviceGetMigMode(device))
"""


@pytest.mark.proves("tensorrt", "outputs in fp32", by={"TensorrtExecutionProvider": "real wheel"})
@pytest.mark.proves("cuda", "outputs in fp32", by={"CUDAExecutionProvider": "real wheel"})
@pytest.mark.parametrize("provider", ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
def test_real_provider_runs_over_the_fakes(lab: Lab, provider: str) -> None:
    done = lab.host().run("-c", SESSION, provider, cwd=lab.cwd)
    assert (done.code, done.err) == (0, "")
    row = [0.0, 0.0, 1.0, 2.0]
    assert done.out.splitlines() == [str([row]), str([row, row, row])]
    assert not done.all(Unanswered)
    # Without profiles the provider builds anew for a batch outside the range it has seen.
    is_tensorrt = provider.startswith("Tensorrt")
    assert [it.profiles[0]["x"][2][0] for it in done.all(Build)] == ([1, 3] if is_tensorrt else [])
    assert all(engine.valid and engine.fits for engine in done.all(Deserialize))


def test_doctor_shows_simulated_gpus(lab: Lab) -> None:
    done = lab.qconvert("doctor", gpus=("8.6", "9.0"))
    assert (done.code, done.err) == (0, "")
    assert "Simulated GPU 0, compute capability 8.6" in done.out
    assert "Simulated GPU 1, compute capability 9.0" in done.out


def test_nvml_answers(lab: Lab) -> None:
    out = lab.python(NVML, gpus=("8.6", "9.0"), driver="581.1", throttled=4, mig=1)
    assert out.splitlines() == ["581.1 Simulated GPU 1", "4 [1, 1]"]
