"""The description of a machine, from files like those of its kernel."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from qconvert.backends.system_probe import Gpu, Installed
from qconvert.measure.machine import describe_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux writes")


CPU = "sys/devices/system/cpu"


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_description_of_this_machine_has_no_empty_fact() -> None:
    machine = describe_machine()
    assert machine["numpy"] == np.__version__
    assert machine["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert {"cpu", "cores", "memory", "os"} <= set(machine)
    assert all(machine.values())


def test_processor_memory_and_os_are_read_from_the_kernel(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU 9000\nprocessor\t: 1\n",
            "proc/meminfo": "MemFree: 5 kB\nMemTotal:       33554432 kB\n",
            "etc/os-release": 'NAME=x\nPRETTY_NAME="Some Linux 12"\n',
        },
    )
    machine = describe_machine(Installed(), root)
    assert machine["cpu"] == "Fast CPU 9000"
    assert machine["memory"] == "32.0 GB"
    assert machine["os"].startswith("Some Linux 12, Linux ")


def test_limits_of_a_container_are_described(tmp_path: Path) -> None:
    quota, limit = "sys/fs/cgroup/cpu.max", "sys/fs/cgroup/memory.max"
    files = {quota: "150000 100000\n", limit: f"{4 * 2**30}\n"}
    root = write_files(tmp_path, {"proc/meminfo": "MemTotal: 33554432 kB\n", **files})
    machine = describe_machine(Installed(), root)
    assert machine["memory"] == "32.0 GB, limited to 4.0 GB"
    assert machine["cores"].endswith("limited to the time of 1.5")
    root = write_files(tmp_path, {quota: "max 100000\n", limit: "max\n"})
    free = describe_machine(Installed(), root)
    assert free["memory"] == "32.0 GB"
    assert "limited" not in free["cores"]


def test_cores_outside_the_affinity_are_not_counted(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core cannot be taken away")
    os.sched_setaffinity(0, {min(before)})
    try:
        assert describe_machine(Installed(), tmp_path)["cores"].startswith(f"1 of {os.cpu_count()}")
    finally:
        os.sched_setaffinity(0, before)


def test_governor_and_turbo_are_described(tmp_path: Path) -> None:
    assert "cpu clock" not in describe_machine(Installed(), tmp_path)
    files = {
        f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n",
        f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "3700000\n",
        f"{CPU}/intel_pstate/no_turbo": "0\n",
    }
    clock = describe_machine(Installed(), write_files(tmp_path, files))["cpu clock"]
    assert clock == "governor powersave, at most 3.70 GHz, turbo on"
    off = write_files(tmp_path / "amd", {f"{CPU}/cpufreq/boost": "0\n"})
    assert describe_machine(Installed(), off)["cpu clock"] == "turbo off"


def test_gpus_driver_and_libraries_are_described(tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA X", (9, 0))
    packages = {"onnxruntime-gpu": "1.31.1", "tensorrt-cu13": "10.16.1", "unrelated": "1"}
    machine = describe_machine(Installed(packages, "CUDA 13.0", "", (gpu, gpu)), tmp_path)
    assert machine["gpu"] == "2 x NVIDIA X (compute 9.0)"
    assert machine["driver"] == "CUDA 13.0"
    assert machine["onnxruntime-gpu"] == "1.31.1"
    assert machine["tensorrt"] == "10.16.1"
    assert "unrelated" not in machine
    assert "gpu" not in describe_machine(Installed(), tmp_path)
