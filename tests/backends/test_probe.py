"""Every backend says whether it works, why not, and the command that mends it."""

import pytest

from qconvert.backends import BACKENDS, probe, versions
from qconvert.backends.base import Availability
from qconvert.backends.system_probe import Gpu, Installed, detect, provider_error

H200 = Gpu("NVIDIA H200", (9, 0))
RTX4090 = Gpu("NVIDIA RTX 4090", (8, 9))
NO_DRIVER = "no NVIDIA driver: libcuda.so.1 not found"

GPU_HOST = {"onnxruntime-gpu": "1.31.1"}


def on(packages: dict[str, str], *gpus: Gpu, no_driver: str = "") -> Installed:
    return Installed(packages, "CUDA 13.0" if gpus else "", no_driver, gpus)


@pytest.mark.parametrize(
    ("backend", "machine", "reason", "cure"),
    [
        ("cpu", on({}), "onnxruntime is not installed", 'pip install "qconvert[cpu]"'),
        ("cuda", on({}), "onnxruntime-gpu is not installed", 'pip install "qconvert[cuda]"'),
        (
            "cuda",
            on({"onnxruntime": "1.31.1"}),
            "onnxruntime-gpu is not installed",
            'pip uninstall -y onnxruntime && pip install "qconvert[cuda]"',
        ),
        ("cuda", on(GPU_HOST, no_driver=NO_DRIVER), NO_DRIVER, "--gpus all"),
        (
            "tensorrt",
            on(
                {**GPU_HOST, "tensorrt-cu13": "11.4.0.106", "tensorrt-cu13-libs": "11.4.0.106"},
                H200,
            ),
            "onnxruntime-gpu 1.31.1 needs TensorRT 10; found 11.4.0.106",
            'pip install "tensorrt-cu13>=10,<11"',
        ),
        (
            "tensorrt",
            on(GPU_HOST, H200),
            "needs TensorRT 10, and none is installed",
            'pip install "tensorrt-cu13>=10,<11"',
        ),
        (
            "tensorrt",
            on({"onnxruntime-gpu": "1.24.0", "tensorrt": "11.4.0"}, H200),
            "onnxruntime-gpu 1.24.0 needs TensorRT 10; found 11.4.0",
            'pip install "tensorrt-cu12>=10,<11"',
        ),
        ("tensorrt", on({"onnxruntime-gpu": "1.17.0"}, H200), "is too old", "qconvert[tensorrt]"),
        (
            "tensorrt",
            on({**GPU_HOST, "tensorrt-cu13": "10.16.1.11"}, no_driver=NO_DRIVER),
            NO_DRIVER,
            "--gpus all",
        ),
        ("tensorrt-rtx", on({}), "tensorrt-rtx-cu13 is not installed", "qconvert[tensorrt-rtx]"),
    ],
)
def test_what_is_missing_is_named_with_its_cure(
    backend: str, machine: Installed, reason: str, cure: str
) -> None:
    found = probe(backend, machine)
    assert not found.builds
    assert not found.runs
    assert reason in found.reason
    assert cure in found.cure


def test_tensorrt_rtx_is_not_taken_for_tensorrt() -> None:
    machine = on(
        {**GPU_HOST, "tensorrt-rtx-cu13": "1.7.1", "tensorrt-rtx-cu13-libs": "1.7.1"}, H200
    )
    assert machine.library_version("tensorrt") == ""
    assert machine.library_version("tensorrt-rtx") == "1.7.1"


def test_the_cpu_provider_runs_a_network_here() -> None:
    found = probe("cpu", detect())
    assert (found.builds, found.runs, found.reason) == (True, True, "")
    assert "threads" in found.version


def test_tensorrt_rtx_builds_without_a_gpu_and_says_what_running_needs() -> None:
    installed = detect()
    if not installed.library_version("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx-cu13 has no wheel for this platform")
    found = probe("tensorrt-rtx", Installed(installed.packages, "", NO_DRIVER, ()))
    assert (found.builds, found.runs) == (True, False)
    assert NO_DRIVER in found.reason
    wrong_gpu = probe("tensorrt-rtx", Installed(installed.packages, "CUDA 13.0", "", (H200,)))
    assert (wrong_gpu.builds, wrong_gpu.runs) == (True, False)
    assert "NVIDIA H200 (9.0)" in wrong_gpu.reason


def test_a_provider_that_is_not_there_says_so_and_never_falls_back() -> None:
    assert "built without CUDAExecutionProvider" in provider_error("CUDAExecutionProvider")
    assert provider_error("CPUExecutionProvider") == ""


def test_a_backend_that_does_not_work_must_say_why() -> None:
    with pytest.raises(ValueError, match="must say why"):
        Availability(builds=True, runs=False)


def test_two_runtimes_are_a_conflict() -> None:
    machine = on({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
    assert machine.runtimes == ("onnxruntime", "onnxruntime-gpu")


@pytest.mark.parametrize(
    ("runtime", "tensorrt", "cuda"),
    [("1.31.1", 10, 13), ("1.27.0", 10, 13), ("1.26.0", 10, 12), ("1.20.1", 10, 12)],
)
def test_what_each_release_links_against(runtime: str, tensorrt: int, cuda: int) -> None:
    found = versions.linked_libraries(runtime)
    assert found is not None
    assert (found.tensorrt, found.cuda, found.cudnn) == (tensorrt, cuda, 9)


def test_releases_before_the_table_are_unknown() -> None:
    assert versions.linked_libraries("1.19.2") is None
    assert versions.major_minor("10.16.1.11") == (10, 16)
    assert versions.major_minor("odd") == (0, 0)


def test_rtx_gpus_by_compute_capability() -> None:
    wanted = {
        (8, 6): True,
        (8, 9): True,
        (12, 0): True,
        (12, 1): True,
        (9, 0): False,
        (8, 0): False,
    }
    assert {each: versions.is_rtx(each) for each in wanted} == wanted
    assert versions.is_rtx(RTX4090.capability)


def test_every_backend_answers_on_an_empty_machine() -> None:
    for name in BACKENDS:
        assert probe(name, on({}, no_driver=NO_DRIVER)).cure
