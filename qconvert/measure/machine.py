"""The machine that figures were measured on: all that another one may do differently."""

import os
import platform
import re
import sys
from pathlib import Path

from qconvert.backends import system_probe
from qconvert.backends.system_probe import Installed

ROOT = Path("/")
GB = 1024**3

# Libraries whose version changes a size, a speed or an answer.
LIBRARIES = (*system_probe.RUNTIMES, "onnx", "onnx-ir", "onnxslim", "numpy", "pillow", "torch")
PRODUCTS = ("tensorrt", "tensorrt-rtx")

CPU = Path("sys/devices/system/cpu")


def describe_machine(found: Installed | None = None, root: Path = ROOT) -> dict[str, str]:
    """Return what is known of this machine, by name; what cannot be read is left out.

    `root` is where `/proc` and `/sys` are read from.
    """
    found = found or system_probe.detect()
    facts = {
        "cpu": _cpu(root),
        "cores": _cores(root),
        "int8 instructions": system_probe.integer_instructions(),
        "cpu clock": _clock(root),
        "memory": _memory(root),
        "os": _os(root),
        "python": platform.python_version(),
        **{name: found.packages.get(name, "") for name in LIBRARIES},
        **{name: found.library_version(name) for name in PRODUCTS},
        "gpu": _gpus(found),
        "driver": found.driver,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _cpu(root: Path) -> str:
    text = _read(root / "proc/cpuinfo")
    named = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _cores(root: Path) -> str:
    """Return how many cores this process may use, and how many there are where that is more."""
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = _read(root / "sys/fs/cgroup/cpu.max").split()
    text = f"{usable}" if usable == there else f"{usable} of {there}"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
        # A container may hold all cores and yet not be given their time.
        text += f", limited to the time of {int(quota[0]) / int(quota[1]):g}"
    return text


def _memory(root: Path) -> str:
    total = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    here = int(total[1]) * 1024 if total else _physical()
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    text = f"{here / GB:.1f} GB" if here else ""
    if limit.isdigit() and int(limit) < here:
        text += f", limited to {int(limit) / GB:.1f} GB"
    return text


def _physical() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _clock(root: Path) -> str:
    """Return what decides the clock of the cores: a figure holds for that only."""
    scaling = root / CPU / "cpu0/cpufreq"
    parts = []
    if governor := _read(scaling / "scaling_governor").strip():
        parts.append(f"governor {governor}")
    if (most := _read(scaling / "cpuinfo_max_freq").strip()).isdigit():
        parts.append(f"at most {int(most) / 1e6:.2f} GHz")
    return ", ".join([*parts, *_turbo(root)])


def _turbo(root: Path) -> list[str]:
    off = {"intel_pstate/no_turbo": "1", "cpufreq/boost": "0"}
    said = {name: _read(root / CPU / name).strip() for name in off}
    return [f"turbo {'off' if said[name] == off[name] else 'on'}" for name in off if said[name]]


def _os(root: Path) -> str:
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"), re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{name[1]}, {kernel}" if name and sys.platform == "linux" else kernel


def _gpus(found: Installed) -> str:
    counted: dict[str, int] = {}
    for gpu in found.gpus:
        name = f"{gpu.name} (compute {gpu.capability[0]}.{gpu.capability[1]})"
        counted[name] = counted.get(name, 0) + 1
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counted.items())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
