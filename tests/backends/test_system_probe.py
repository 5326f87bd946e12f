"""Every backend reports whether it works, or the reason and a command that fixes it."""

import pytest

from qconvert.backends import BACKENDS, probe, subprocess_worker
from qconvert.backends.base import Availability
from qconvert.backends.system_probe import Gpu, Installed, detect, provider_error
from qconvert.backends.tensorrt_rtx import BUILDER
from qconvert.backends.versions import PACKAGE
from qconvert.core.errors import QConvertError
from qconvert.core.pip_command import pip_install

H200 = Gpu("NVIDIA H200", (9, 0))
NO_DRIVER = "no NVIDIA driver: libcuda.so.1 not found"

GPU_HOST = {PACKAGE: "1.31.1"}


def machine(
    packages: dict[str, str],
    *gpus: Gpu,
    driver_error: str = "",
    driver: tuple[str, int] = ("580.95", 13),
) -> Installed:
    if not gpus:
        return Installed(packages, "", driver_error)
    release, cuda = driver
    return Installed(packages, f"{release} (CUDA {cuda}.0)", driver_error, gpus, (cuda, 0))


def tensorrt_host(runtime: str, **tensorrt: str) -> Installed:
    packages = {name.replace("_", "-"): version for name, version in tensorrt.items()}
    return machine({PACKAGE: runtime, **packages}, H200)


NO_GPU = machine({**GPU_HOST, "tensorrt-cu13": "10.16.1.11"}, driver_error=NO_DRIVER)
OLD_DRIVER = machine(GPU_HOST, H200, driver=("550.54", 12))
OLD_GPU = machine(GPU_HOST, Gpu("Tesla V100", (7, 0)))
CU13 = 'pip install "tensorrt-cu13>=10.14.1,<11"'
CU12 = 'pip install "tensorrt-cu12>=10,<11"'


@pytest.mark.parametrize(
    ("backend", "installed", "reason", "cure"),
    [
        ("cpu", machine({}), "onnxruntime is not installed", pip_install("cpu")),
        ("cuda", machine({}), "onnxruntime-gpu is not installed", pip_install("cuda")),
        (
            "cuda",
            machine({"onnxruntime": "1.31.1"}),
            "onnxruntime-gpu is not installed",
            f"pip uninstall -y onnxruntime && {pip_install('cuda')}",
        ),
        ("cuda", machine(GPU_HOST, driver_error=NO_DRIVER), NO_DRIVER, "--gpus all"),
        ("cuda", OLD_DRIVER, "too old for CUDA 13: found 550.54 (CUDA 12.0)", "driver 580"),
        ("cuda", OLD_GPU, "capability 7.5 or newer: found Tesla V100 7.0", "--backend cpu"),
        (
            "tensorrt",
            tensorrt_host("1.31.1", tensorrt_cu13="10.13.3"),
            "needs TensorRT 10.14.1; found 10.13.3",
            CU13,
        ),
        ("tensorrt", tensorrt_host("1.31.1"), "TensorRT 10.14.1; none is installed", CU13),
        ("tensorrt", tensorrt_host("1.20.1"), "needs TensorRT 10; none is installed", CU12),
        ("tensorrt", tensorrt_host("1.19.2"), "is too old", pip_install("tensorrt")),
        ("tensorrt", NO_GPU, NO_DRIVER, "--gpus all"),
        ("tensorrt-rtx", machine({}), f"{BUILDER} is not installed", pip_install("tensorrt-rtx")),
    ],
)
def test_missing_requirement_is_named_with_remedy(
    backend: str, installed: Installed, reason: str, cure: str
) -> None:
    status = probe(backend, installed)
    assert (status.builds, status.runs) == (False, False)
    assert reason in status.reason
    assert cure in status.cure


def test_newer_tensorrt_needs_a_driver_too() -> None:
    packages = {"onnxruntime": "1.31.1", "tensorrt-cu13-libs": "11.4.0.106"}
    status = probe("tensorrt", machine(packages, H200, driver=("550.54", 12)))
    assert "TensorRT 11.4.0.106, in its own runtime" in status.version
    assert "too old for CUDA 13" in status.reason


def test_tensorrt_rtx_is_not_mistaken_for_tensorrt() -> None:
    packages = {**GPU_HOST, "tensorrt-rtx-cu13": "1.7.1", "tensorrt-rtx-cu13-libs": "1.7.1"}
    installed = machine(packages, H200)
    assert installed.library_version("tensorrt") == ""
    assert installed.library_version("tensorrt-rtx") == "1.7.1"


def test_cpu_provider_runs_here() -> None:
    status = probe("cpu", detect())
    assert (status.builds, status.runs, status.reason) == (True, True, "")
    assert "threads" in status.version


@pytest.mark.slow
def test_tensorrt_rtx_builds_without_a_gpu_and_says_what_running_needs() -> None:
    packages = detect().packages
    if not machine(dict(packages)).library_version("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx-cu13 has no wheel for this platform")
    status = probe("tensorrt-rtx", Installed(packages, "", NO_DRIVER, ()))
    assert (status.builds, status.runs) == (True, False)
    assert NO_DRIVER in status.reason
    status = probe("tensorrt-rtx", Installed(packages, "CUDA 13.0", "", (H200,)))
    assert (status.builds, status.runs) == (True, False)
    assert "NVIDIA H200 (9.0)" in status.reason
    for capability in ((8, 6), (8, 9), (12, 0), (12, 1)):
        gpu = Gpu("NVIDIA RTX", capability)
        status = probe("tensorrt-rtx", Installed({**packages, PACKAGE: ""}, "", "", (gpu,)))
        assert "plugin" in status.reason


def test_missing_provider_is_reported_and_never_falls_back() -> None:
    reason, cure = provider_error("NoSuchExecutionProvider", "pip install it")
    assert "built without NoSuchExecutionProvider" in reason
    assert cure == "pip install it"


def test_what_worked_is_not_tried_again_and_what_failed_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe("cpu", detect()).runs
    started = []

    def fail(*args: object, **options: object) -> None:
        started.append(args)
        raise QConvertError("the driver is gone", hint="")

    monkeypatch.setattr(subprocess_worker, "call", fail)
    assert probe("cpu", detect()).runs
    assert not started
    for _ in range(2):
        assert provider_error("CUDAExecutionProvider", "")[0] == "the driver is gone"
    assert len(started) == 2


def test_backend_that_does_not_work_must_give_a_reason() -> None:
    with pytest.raises(ValueError, match="must give a reason"):
        Availability(builds=True, runs=False)


def test_two_runtimes_are_a_conflict() -> None:
    installed = machine({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
    assert installed.runtimes == ("onnxruntime", "onnxruntime-gpu")


def test_backends_have_remedies_on_empty_machine() -> None:
    for name in BACKENDS:
        assert probe(name, machine({}, driver_error=NO_DRIVER)).cure
