"""TensorRT for RTX on a machine that has a driver and no CUDA."""

import json

from tests.gpu_lab.conftest import Lab

# Registers the plugin as `doctor` does, and prints the CUDA runtime that its libraries got.
REGISTER = """
from pathlib import Path
from qconvert.backends import ort, tensorrt_rtx
from qconvert.core.errors import Unavailable
try:
    ort.plugin_devices(tensorrt_rtx.MODULE, tensorrt_rtx.PROVIDER)
except Unavailable as error:
    print(error)
maps = Path("/proc/self/maps").read_text().split()
print(*sorted({Path(name).resolve().parent.name for name in maps if "libcudart" in name}))
"""


def test_plugin_gets_the_cuda_runtime_beside_it(lab: Lab) -> None:
    out = lab.python(REGISTER, machine=lab.machines.rtx(), gpus=("8.9",))
    # The libraries load; ONNX Runtime itself sees no GPU in this machine.
    assert out.splitlines() == [
        "the plugin of NvTensorRTRTXExecutionProvider found no device",
        "onnxruntime_ep_nv_tensorrt_rtx",
    ]


def test_doctor_tries_to_load_the_plugin(lab: Lab) -> None:
    done = lab.qconvert("doctor", "--json", machine=lab.machines.rtx(), gpus=("8.9",))
    state = json.loads(done.out)["backends"]["tensorrt-rtx"]
    assert (state["builds"], state["runs"]) == (True, False)
    assert "found no device" in state["reason"]
    old = lab.qconvert("doctor", "--json", machine=lab.machines.rtx(), cuda=12080, driver="570.1")
    state = json.loads(old.out)["backends"]["tensorrt-rtx"]
    assert "too old for CUDA 13: found 570.1 (CUDA 12.8)" in state["reason"]
