"""Describe the machine that measurements were made on: everything that may change them."""

import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path

from qconvert.backends import system_probe
from qconvert.backends.system_probe import Installed

ROOT = Path("/")
GIB = 1024**3

# Libraries whose version changes a size, a speed or an output.
LIBRARIES = (*system_probe.RUNTIMES, "onnx", "onnx-ir", "onnxslim", "numpy", "pillow", "torch")
PRODUCTS = ("tensorrt", "tensorrt-rtx")


def describe_machine(installed: Installed | None = None, root: Path = ROOT) -> dict[str, str]:
    """Return what is known of this machine, by name; what cannot be read is left out.

    `root` is where `/proc`, `/sys` and `/etc` are read from.
    """
    installed = installed or system_probe.detect()
    facts = {
        "cpu": _cpu(root),
        "cores": _cores(root),
        "int8 instructions": system_probe.integer_instructions(),
        "cpu clock": _clock(root),
        "memory": _memory(root),
        "os": _os(root),
        "python": platform.python_version(),
        **{name: installed.packages.get(name, "") for name in LIBRARIES},
        **{name: installed.library_version(name) for name in PRODUCTS},
        "gpu": _gpus(installed),
        "driver": installed.driver,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _cpu(root: Path) -> str:
    name = _search(root / "proc/cpuinfo", r"^(?:model name|Model|cpu model)\s*:\s*(.+)$")
    return name.strip() or platform.processor() or platform.machine()


def _cores(root: Path) -> str:
    """Return how many cores this process may use, and how many exist where that is more."""
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    quota = _read(root / "sys/fs/cgroup/cpu.max").split()
    text = f"{usable}" if usable == count else f"{usable} of {count}"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
        # A container may see all cores and yet not be given their time.
        text += f", limited to the time of {int(quota[0]) / int(quota[1]):g}"
    return text


def _memory(root: Path) -> str:
    total = int(_search(root / "proc/meminfo", r"^MemTotal:\s*(\d+) kB") or 0) * 1024
    total = total or _physical_memory()
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    text = f"{total / GIB:.1f} GB" if total else ""
    if limit.isdigit() and int(limit) < total:
        text += f", limited to {int(limit) / GIB:.1f} GB"
    return text


def _physical_memory() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _clock(root: Path) -> str:
    """Return what decides the clock of the cores."""
    cpu = root / "sys/devices/system/cpu"
    scaling = cpu / "cpu0/cpufreq"
    parts = []
    if governor := _read(scaling / "scaling_governor").strip():
        parts.append(f"governor {governor}")
    if (fastest := _read(scaling / "cpuinfo_max_freq").strip()).isdigit():
        parts.append(f"at most {int(fastest) / 1e6:.2f} GHz")
    for file, off in (("intel_pstate/no_turbo", "1"), ("cpufreq/boost", "0")):
        if state := _read(cpu / file).strip():
            parts.append(f"turbo {'off' if state == off else 'on'}")
    return ", ".join(parts)


def _os(root: Path) -> str:
    name = _search(root / "etc/os-release", r'^PRETTY_NAME="?([^"\n]+)')
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{name}, {kernel}" if name and sys.platform == "linux" else kernel


def _gpus(installed: Installed) -> str:
    names = Counter(
        f"{gpu.name} (compute {gpu.capability[0]}.{gpu.capability[1]})" for gpu in installed.gpus
    )
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())


def _search(path: Path, pattern: str) -> str:
    """Return the first group of the first match in a file, empty without one."""
    match = re.search(pattern, _read(path), re.MULTILINE)
    return match[1] if match else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
