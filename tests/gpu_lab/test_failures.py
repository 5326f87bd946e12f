"""What a user reads when TensorRT, CUDA or this machine cannot do what was asked."""

import os
import signal
import time
from dataclasses import dataclass, field

import pytest

from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.lab.environment import Finished
from tests.gpu_lab.lab.events import Build, read_log

BUILD = ("build", "tiny.onnx", "-o", "run", "--precision", "fp16", "--set", "bench.seconds=0.02")
NATIVE = (*BUILD, "--backend", "tensorrt")
PROVIDER = (*NATIVE, "--set", "tensorrt.builder=provider")
CUDA = (*BUILD, "--backend", "cuda")

NO_KERNEL = "Error Code 10: Internal Error (Could not find any implementation for node {conv}.)"
OUT_OF_MEMORY = "Error Code 2: OutOfMemory"


@dataclass(frozen=True)
class Fault:
    """A command on a machine that cannot do it; the error holds `reason`, the hint `cure`."""

    command: tuple[str, ...]
    reason: str
    cure: str
    script: dict[str, object] = field(default_factory=dict)
    without: str = ""
    code: int = 3


FAULTS = {
    "native builder returns nothing": Fault(
        NATIVE, NO_KERNEL, "--exclude", {"build_error": NO_KERNEL}
    ),
    "provider builds nothing": Fault(
        PROVIDER, NO_KERNEL, "qconvert inspect", {"build_error": NO_KERNEL}
    ),
    "parser refuses": Fault(
        NATIVE, "Unsupported type: DOUBLE", "cpu", {"parse_error": "Unsupported type: DOUBLE"}
    ),
    "native builder crashes": Fault(NATIVE, "SIGSEGV", "--exclude", {"crash": "build"}),
    "provider crashes": Fault(PROVIDER, "SIGSEGV", "--exclude", {"crash": "build"}),
    "driver too old": Fault(
        NATIVE,
        "the NVIDIA driver is too old for CUDA 13: found 570.1 (CUDA 12.8)",
        "driver 580 or newer",
        {"cuda": 12080, "driver": "570.1"},
        code=4,
    ),
    "GPU too old": Fault(
        CUDA,
        "CUDA 13 needs a GPU of compute capability 7.5 or newer: found Simulated GPU 0 7.0",
        "--backend cpu",
        {"gpus": ("7.0",)},
        code=4,
    ),
    "driver does not start": Fault(
        CUDA, "cuInit returns 999", "install the NVIDIA driver", {"cu_init": 999}, code=4
    ),
    "cuBLASLt missing": Fault(
        CUDA,
        "libcublasLt.so.13: cannot open shared object file",
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
        without="libcublasLt.so.13",
        code=4,
    ),
    "cuDNN missing, under TensorRT": Fault(
        NATIVE,
        "libcudnn.so.9: cannot open shared object file",
        "pip install",
        without="libcudnn.so.9",
        code=4,
    ),
    "cuDNN missing, under CUDA": Fault(
        CUDA, "libcudnn.so", "pip install", without="libcudnn.so.9", code=4
    ),
    "out of memory at load": Fault(NATIVE, OUT_OF_MEMORY, "memory", {"engine_mb": 9000}),
}


# What these errors prove; all others come from checks of qconvert's own.
FAILS = ("tensorrt", "build that fails: TensorRT's reason")
CRASHES = ("tensorrt", "build that crashes")
PROVES = {
    "native builder returns nothing": (*FAILS, "real bindings"),
    "provider builds nothing": (*FAILS, "real wheel"),
    "parser refuses": ("tensorrt", "operator that TensorRT refuses", "real bindings"),
    "native builder crashes": (*CRASHES, "real bindings"),
    "provider crashes": (*CRASHES, "real wheel"),
    "cuBLASLt missing": ("cuda", "missing library named", "real wheel"),
    "cuDNN missing, under CUDA": ("cuda", "missing library named", "real wheel"),
    "cuDNN missing, under TensorRT": ("tensorrt", "missing library named", "real wheel"),
    "out of memory at load": ("tensorrt", "GPU out of memory", "real wheel"),
}


def cases() -> list[object]:
    """Return the faults, each with what its error proves."""
    parameters: list[object] = []
    for name, fault in FAULTS.items():
        marks = []
        if name in PROVES:
            backend, feature, by = PROVES[name]
            marks = [pytest.mark.proves(backend, feature, by=by)]
        parameters.append(pytest.param(fault, id=name, marks=marks))
    return parameters


@pytest.mark.parametrize("fault", cases())
@pytest.mark.usefixtures("tiny")
def test_fault_is_explained(lab: Lab, fault: Fault) -> None:
    machine = lab.machines.gpu(without=fault.without)
    done = lab.qconvert(*fault.command, machine=machine, **fault.script)
    assert done.code == fault.code, done.err
    assert fault.reason in message(done, "error:")
    assert fault.cure in message(done, "hint:")
    assert "Traceback" not in done.err
    assert "\x1b" not in done.err  # no line of a library's log
    assert done.out == ""
    assert set(lab.files()) <= {"tiny.onnx", "run"}
    # An engine that was built is kept, whatever happens later.
    is_built = fault.reason == OUT_OF_MEMORY
    assert bool(list((lab.cwd / "run").rglob("*.engine"))) is is_built


def message(done: Finished, start: str) -> str:
    """Return the line of stderr that begins so."""
    lines = [line for line in done.err.splitlines() if line.startswith(start)]
    assert len(lines) == 1, done.err
    return lines[0]


@pytest.mark.proves("tensorrt", "interrupted build", by="real bindings")
@pytest.mark.parametrize("command", [NATIVE, PROVIDER], ids=["native", "provider"])
@pytest.mark.usefixtures("tiny")
def test_ctrl_c_ends_a_build_and_keeps_what_is_done(lab: Lab, command: tuple[str, ...]) -> None:
    log = lab.cwd.parent / f"{lab.cwd.name}.log"
    with lab.host(hang="build").start("-m", "qconvert", *command, cwd=lab.cwd, log=log) as process:
        deadline = time.monotonic() + 90
        while not any(isinstance(it, Build) and it.profiles for it in read_log(log)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no child is left
    assert lab.files() == ["run", "tiny.onnx"]
    done = lab.qconvert(*command[:1], "--from", "run", *command[4:])
    assert done.code == 0, done.err
