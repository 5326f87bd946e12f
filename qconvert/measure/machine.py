"""Describe the machine that measurements were made on: everything that may change them."""

import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path

from qconvert.backends import system_probe
from qconvert.backends.int8_class import int8_class
from qconvert.backends.system_probe import Installed
from qconvert.measure import gpu

GIB = 1024**3

# Libraries whose version changes a size, a speed or an output.
LIBRARIES = (*system_probe.RUNTIMES, "onnx", "onnx-ir", "onnxslim", "numpy", "pillow", "torch")


def describe_machine(installed: Installed | None = None, root: Path = Path("/")) -> dict[str, str]:
    """Return what can be read of this machine, by name; `root` has `/proc`, `/sys` and `/etc`."""
    installed = installed or system_probe.detect()
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    cores = f"{usable}" if usable == count else f"{usable} of {count}"
    quota = _read(root / "sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
        # A container may see all cores and yet not be given their time.
        cores += f", limited to the time of {int(quota[0]) / int(quota[1]):g}"
    total = int(_search(root / "proc/meminfo", r"^MemTotal:\s*(\d+) kB") or 0) * 1024
    if not total and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= getattr(os, "sysconf_names", {}).keys():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = f"{total / GIB:.1f} GB" if total else ""
    limit = _read(root / "sys/fs/cgroup/memory.max")
    if limit.isdigit() and int(limit) < total:
        memory += f", limited to {int(limit) / GIB:.1f} GB"
    clock, cpu = [], root / "sys/devices/system/cpu"
    if governor := _read(cpu / "cpu0/cpufreq/scaling_governor"):
        clock.append(f"governor {governor}")
    if (fastest := _read(cpu / "cpu0/cpufreq/cpuinfo_max_freq")).isdigit():
        clock.append(f"at most {int(fastest) / 1e6:.2f} GHz")
    for file, off in (("intel_pstate/no_turbo", "1"), ("cpufreq/boost", "0")):
        if state := _read(cpu / file):
            clock.append(f"turbo {'off' if state == off else 'on'}")
    model = _search(root / "proc/cpuinfo", r"^(?:model name|Model|cpu model)\s*:\s*(.+)$")
    release = _search(root / "etc/os-release", r'^PRETTY_NAME="?([^"\n]+)')
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    gpus = Counter(
        f"{it.name} (compute {it.capability[0]}.{it.capability[1]})" for it in installed.gpus
    )
    facts = {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": cores,
        "int8 instructions": int8_class(root).name,
        "cpu clock": ", ".join(clock),
        "memory": memory,
        "os": f"{release}, {kernel}" if release and sys.platform == "linux" else kernel,
        "python": platform.python_version(),
        **{name: installed.packages.get(name, "") for name in LIBRARIES},
        **{name: installed.library_version(name) for name in ("tensorrt", "tensorrt-rtx")},
        "gpu": ", ".join(
            f"{count} x {name}" if count > 1 else name for name, count in gpus.items()
        ),
        "driver": installed.driver,
        **(gpu.gpu_facts() if installed.gpus else {}),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _search(path: Path, pattern: str) -> str:
    """Return the first group of the first match in a file, empty without one."""
    match = re.search(pattern, _read(path), re.MULTILINE)
    return match[1].strip() if match else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
