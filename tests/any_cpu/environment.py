"""Other CPUs on this host: ONNX Runtime under QEMU's user mode, for x86-64 and ARM.

`python -m tests.any_cpu.environment` fetches what is missing, without root: QEMU if it is not on
PATH, and for ARM a small Debian with Python, NumPy and ONNX Runtime; with the word `x86_64`, QEMU
alone. It needs Debian's `apt-get`.
"""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import platformdirs
from numpy.typing import NDArray

from qconvert.core import atomic

HERE = Path(__file__).parent
HOST = "this host"
HINT = "`make any-cpu` fetches it with apt-get, or install Debian's package qemu-user"
RELEASE, PYTHON = "bookworm", "3.11"  # of Debian, and its Python
DEBIAN = (
    *(f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", f"python{PYTHON}-minimal"),
    *("libbz2-1.0", "libc6", "libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libssl3"),
    *("libstdc++6", "libuuid1", "zlib1g"),
)
WHEELS = ("numpy", "onnxruntime")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class File:
    """An ONNX file and its inputs."""

    model: onnx.ModelProto
    feeds: dict[str, Any]


@dataclass(frozen=True)
class Cpu:
    """A CPU that QEMU emulates; `features` and `part` are lines of its /proc/cpuinfo."""

    machine: str
    features: str
    part: str = ""


# QEMU 7.2 emulates no AVX-512 and no VNNI.
CPUS = {
    "Haswell": Cpu("x86_64", "fma avx f16c avx2 bmi1 bmi2"),
    "Nehalem": Cpu("x86_64", "ssse3 sse4_1 sse4_2 popcnt"),
    "cortex-a72": Cpu("aarch64", "fp asimd aes pmull sha1 sha2 crc32", "0xd08"),
    "neoverse-n1": Cpu("aarch64", "fp asimd crc32 atomics asimdhp asimdrdm asimddp", "0xd0c"),
}


def root() -> Path:
    """Return the folder of what was fetched: QCONVERT_ANY_CPU, or one in the user's cache."""
    folder = os.environ.get("QCONVERT_ANY_CPU")
    return Path(folder) if folder else platformdirs.user_cache_path("qconvert-any-cpu")


def qemu(machine: str) -> str | None:
    """Return the emulator of a machine, from PATH or from the folder."""
    names = (f"qemu-{machine}", f"qemu-{machine}-static")
    places = (None, str(root() / "qemu/usr/bin"))
    found = (shutil.which(name, path=place) for place in places for name in names)
    return next(filter(None, found), None)


def debian() -> Path:
    """Return the folder of Debian for ARM, with the releases of the tests' own packages."""
    return root() / "-".join(["arm64", *(metadata.version(name) for name in WHEELS)])


def missing(cpu: str) -> str:
    """Return why a CPU cannot be emulated here, or nothing."""
    machine = CPUS[cpu].machine
    if platform.machine() != "x86_64":
        return f"other CPUs are emulated on x86-64 hosts only; this one is {platform.machine()}"
    if qemu(machine) is None:
        return f"qemu-{machine} is not here: {HINT}"
    if machine == "aarch64" and not debian().is_dir():
        return "Debian for ARM is not here: `make any-cpu` fetches it with apt-get (60 MB)"
    return ""


def python(cpu: str, folder: Path) -> list[str]:
    """Return the command that starts Python as this CPU; `folder` is for files it needs.

    QEMU opens files of the -L folder in place of the host's, so that programs which ask
    /proc/cpuinfo see the emulated CPU. On ARM, ONNX Runtime crashes without one of ARM.
    """
    emulated = CPUS[cpu]
    emulator = qemu(emulated.machine)
    assert emulator is not None, missing(cpu)
    seen = folder / cpu
    (seen / "proc").mkdir(parents=True, exist_ok=True)
    (seen / "proc/cpuinfo").write_text(_cpuinfo(cpu))
    if emulated.machine == "aarch64":
        for path in debian().iterdir():
            link = seen / path.name
            if not link.is_symlink():
                link.symlink_to(path)
        program = str(debian() / f"usr/bin/python{PYTHON}")
    else:
        program = sys.executable
    return [emulator, "-cpu", cpu, "-L", str(seen), program]


def environment(cpu: str) -> dict[str, str]:
    """Return the variables of an emulated process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COV_")}
    if CPUS[cpu].machine == "aarch64":
        kept["PYTHONPATH"] = str(debian() / "site")
    else:
        # NumPy's OpenBLAS chose kernels with AVX on a host that has it, which Nehalem has not.
        kept["OPENBLAS_CORETYPE"] = "Nehalem"
    return kept


def run_files(cpu: str, files: Mapping[str, File], folder: Path) -> dict[str, Arrays]:
    """Run files as a CPU, or as this host's, with ONNX Runtime's defaults; return their outputs."""
    work = folder / f"files of {cpu}"
    work.mkdir()
    for number, file in enumerate(files.values()):
        onnx.save(file.model, work / f"{number:03}.onnx")
        np.savez(work / f"{number:03}.npz", **file.feeds)
    program = [sys.executable] if cpu == HOST else python(cpu, folder)
    command = [*program, str(HERE / "child.py"), str(work)]
    variables = None if cpu == HOST else environment(cpu)
    finished = subprocess.run(command, check=False, env=variables, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"ONNX Runtime on {cpu} failed: {finished.stderr}")
    return {name: dict(np.load(work / f"{number:03}.out.npz")) for number, name in enumerate(files)}


def _cpuinfo(cpu: str) -> str:
    """Return what Linux says about two cores of this CPU."""
    emulated = CPUS[cpu]
    if emulated.machine == "x86_64":
        lines = [f"model name\t: {cpu}", f"flags\t\t: fpu sse sse2 {emulated.features}"]
    else:
        lines = [f"Features\t: {emulated.features}", "CPU implementer\t: 0x41"]
        lines += ["CPU architecture: 8", "CPU variant\t: 0x0", f"CPU part\t: {emulated.part}"]
        lines += ["CPU revision\t: 1"]
    return "".join("\n".join([f"processor\t: {core}", *lines]) + "\n\n" for core in range(2))


def create(machines: Sequence[str]) -> None:
    """Fetch what emulates these machines, unless it is here."""
    if platform.machine() != "x86_64":
        return
    root().mkdir(parents=True, exist_ok=True)
    with atomic.temporary_folder(root()) as place:
        if not all(map(qemu, machines)):
            _unpack(_apt(place, ["download", "qemu-user-static"]), place / "qemu")
            shutil.rmtree(root() / "qemu", ignore_errors=True)
            (place / "qemu").rename(root() / "qemu")
        if "aarch64" in machines and not debian().is_dir():
            _unpack(_apt(place, ["download", *DEBIAN], _arm_settings(place)), place / "debian")
            _add_wheels(place / "debian/site", place / "wheels")
            (place / "debian").rename(debian())
            _compile(place)


def _apt(place: Path, words: Sequence[str], settings: Path | None = None) -> list[Path]:
    """Run apt-get, and return the packages that it downloaded."""
    if shutil.which("apt-get") is None:
        raise SystemExit("this host has no apt-get: install QEMU's user mode, and see " + HINT)
    downloads = place / "packages"
    downloads.mkdir(exist_ok=True)
    variables = os.environ | ({"APT_CONFIG": str(settings)} if settings else {})
    for command in ["update", "-qq"], [*words, "-qq"]:
        if command[0] == "update" and settings is None:
            continue  # that is for root to do
        finished = subprocess.run(
            ["apt-get", *command],
            check=False,
            cwd=downloads,
            env=variables,
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            raise SystemExit(f"apt-get {command[0]} failed: {finished.stderr.strip()}\n{HINT}")
    return sorted(downloads.glob("*.deb"))


def _arm_settings(place: Path) -> Path:
    """Write the settings of an apt-get that knows only packages for ARM, and needs no root."""
    state = place / "apt"
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source = f"{_mirror()} {RELEASE} main"
    (state / "parts/debian.list").write_text(f"deb [arch=arm64 signed-by={keys}] {source}\n")
    settings = state / "apt.conf"
    settings.write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; };\n'
        'APT::Sandbox::User "";\n'
        f'Dir::State "{state}"; Dir::State::lists "{state}/lists";\n'
        f'Dir::State::status "{state}/status"; Dir::Cache "{state}/cache";\n'
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{state}/parts";\n'
    )
    return settings


def _mirror() -> str:
    """Return where this host's apt-get finds Debian."""
    words = ["--format", "$(SITE)", "Created-By: Packages", "Origin: Debian", "Component: main"]
    shown = subprocess.run(
        ["apt-get", "indextargets", *words], check=False, capture_output=True, text=True
    )
    sites = sorted(site for site in set(shown.stdout.split()) if not site.endswith("-security"))
    if not sites:
        raise SystemExit(f"apt-get knows no Debian: run `apt-get update`, and see {HINT}")
    return sites[0]


def _unpack(packages: Sequence[Path], folder: Path) -> None:
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        package.unlink()


def _add_wheels(site: Path, wheels: Path) -> None:
    """Fetch for ARM the releases that the tests run with on this host."""
    releases = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (27, 28)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command = [*pip, f"--python-version={PYTHON}", *platforms, *releases, "-d", str(wheels)]
    subprocess.run(command, check=True)
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as content:
            content.extractall(site)


def _compile(place: Path) -> None:
    """Start ONNX Runtime once: it proves that it runs, and Python keeps what it compiles."""
    command = [*python("cortex-a72", place), "-c", "import onnxruntime"]
    finished = subprocess.run(
        command, check=False, env=environment("cortex-a72"), capture_output=True, text=True
    )
    if finished.returncode:
        shutil.rmtree(debian())
        raise SystemExit(f"ONNX Runtime does not start under QEMU: {finished.stderr.strip()}")


def is_saturating(cpu: str) -> bool:
    """Whether ONNX Runtime adds products in 16 bits on this CPU."""
    return "avx2" in CPUS[cpu].features.split()


if __name__ == "__main__":
    create(sys.argv[1:] or ("x86_64", "aarch64"))
