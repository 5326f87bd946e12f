"""The laboratory itself: real wheels load the fake libraries, and numbers flow through both."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu_lab.lab.environment import Host
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


@pytest.mark.parametrize("provider", ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
def test_real_provider_runs_over_the_fakes(
    gpu: Callable[..., Host], tmp_path: Path, provider: str
) -> None:
    done = gpu().run("-c", SESSION, provider, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    row = [0.0, 0.0, 1.0, 2.0]
    assert done.out.splitlines() == [str([row]), str([row, row, row])]
    assert not done.all(Unanswered)


def test_provider_rebuilds_for_a_new_batch(gpu: Callable[..., Host], tmp_path: Path) -> None:
    done = gpu().run("-c", SESSION, "TensorrtExecutionProvider", cwd=tmp_path)
    assert [build.profiles[0]["x"][2][0] for build in done.all(Build)] == [1, 3]
    assert [engine.valid for engine in done.all(Deserialize)] == [True, True]


def test_doctor_shows_simulated_gpus(gpu: Callable[..., Host], tmp_path: Path) -> None:
    done = gpu(gpus=("8.6", "9.0")).qconvert("doctor", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "Simulated GPU 0, compute capability 8.6" in done.out
    assert "Simulated GPU 1, compute capability 9.0" in done.out
