"""The machines of the laboratory: real wheels over fake libraries, each with a Python of its own.

`python -m tests.gpu_lab.lab.environment` fetches the wheels and compiles the libraries.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from qconvert.core import atomic
from tests.gpu_lab.lab import generate
from tests.gpu_lab.lab.events import Event, T, read_log
from tests.gpu_lab.lab.script import Script

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]
LOCKS = {
    ".": HERE.parent / "requirements.txt",
    "tensorrt11": HERE.parent / "requirements-tensorrt11.txt",
}
SITE = HERE / "site"

GPU = ("onnxruntime_gpu", "tensorrt_cu13_bindings", "nvidia_ml_py")
RTX = ("onnxruntime_ep_nv_tensorrt_rtx_cu13", "nvidia_ml_py")
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
# Ours in place of libraries that the plugin brings along.
BROUGHT = {
    "libcudart.so.13.4.36": "libcudart.so.13",
    "libtensorrt_rtx.so.1.7.1": "libtensorrt_rtx.so.1",
}
# Of the environment that runs the tests: a host brings its own, or none.
REPLACED = re.compile(r"(onnxruntime|tensorrt|nvidia|pynvml)", re.IGNORECASE)


def root() -> Path:
    """Return the folder of the laboratory: QCONVERT_GPU_LAB, or one in the user's cache."""
    folder = os.environ.get("QCONVERT_GPU_LAB")
    return Path(folder) if folder else platformdirs.user_cache_path("qconvert-gpu-lab")


def packages() -> Path:
    """Return the folder of the unpacked wheels that the locks name, for this Python."""
    key = f"{sysconfig.get_platform()} {sys.version_info[:2]}".encode()
    key += b"".join(lock.read_bytes() for lock in LOCKS.values())
    return root() / f"packages-{hashlib.sha256(key).hexdigest()[:12]}"


def missing() -> str:
    """Return why the laboratory cannot be used here, or nothing."""
    if not packages().is_dir():
        return "the wheels of the GPU laboratory are not here: `make gpu-lab` fetches them (400 MB)"
    return "" if shutil.which("g++") else "the GPU laboratory needs gcc and g++"


def create() -> None:
    """Fetch the wheels and compile the libraries, unless that is done."""
    if not packages().is_dir():
        root().mkdir(parents=True, exist_ok=True)
        with atomic.temporary_folder(root()) as place:
            pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps")
            for folder, lock in LOCKS.items():
                wheels = place / folder / "wheels"
                subprocess.run([*pip, "--only-binary=:all:", "-r", lock, "-d", wheels], check=True)
                for wheel in wheels.iterdir():
                    with zipfile.ZipFile(wheel) as content:
                        content.extractall(place / folder / wheel.name.split("-")[0])
                shutil.rmtree(wheels)
            if not packages().is_dir():
                place.rename(packages())
    fakes()


def fakes() -> Path:
    """Return the folder of the compiled libraries."""
    wheels = ("onnxruntime_gpu", "onnxruntime_ep_nv_tensorrt_rtx_cu13")
    callers = [path for name in wheels for path in (packages() / name).rglob("lib*.so*")]
    headers = packages() / "headers"
    if not headers.is_dir():
        with atomic.temporary_folder(packages()) as place:
            for name in ("nvidia_cuda_runtime", "nvidia_cuda_crt"):
                include = packages() / name / "nvidia/cu13/include"
                shutil.copytree(include, place / "include", dirs_exist_ok=True)
            (place / "include").rename(headers)
    return generate.compile_fakes(callers, headers, root())


@dataclass(frozen=True)
class Finished:
    """A finished process of a host, and what it did to the fake libraries."""

    code: int
    out: str
    err: str
    events: list[Event] = field(default_factory=list)

    def all(self, kind: type[T]) -> list[T]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@dataclass(frozen=True)
class Host:
    """A machine with simulated GPUs. `environment` is set for all its processes."""

    folder: Path
    script: Script = field(default_factory=Script)
    environment: dict[str, str] = field(default_factory=dict)

    def variables(self, log: Path) -> dict[str, str]:
        """Return the environment of a process."""
        sysfs = self.folder / generate.DRIVER / generate.SYSFS
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("COV_")},
            "PYTHONPATH": str(CHECKOUT),
            "LD_LIBRARY_PATH": str(self.folder / "driver"),
            "GPU_LAB_SCRIPT": self.script.text(),
            "GPU_LAB_LOG": str(log),
            "GPU_LAB_DRM": str(self.folder / "driver/drm"),
            **({"LD_PRELOAD": str(sysfs)} if sysfs.exists() else {}),
            **self.environment,
        }

    def start(self, *args: str | Path, cwd: Path, log: Path) -> "subprocess.Popen[str]":
        """Start this host's Python."""
        return subprocess.Popen(
            [self.folder / "bin/python", "-P", *map(str, args)],
            cwd=cwd,
            env=self.variables(log),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C reaches it and its children, as in a terminal
        )

    def run(self, *args: str | Path, cwd: Path, seconds: float = 120) -> Finished:
        """Run this host's Python to its end."""
        log = cwd / ".gpu-lab.log"
        log.unlink(missing_ok=True)
        with self.start(*args, cwd=cwd, log=log) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except BaseException:
                process.kill()
                raise
        events = read_log(log)
        log.unlink(missing_ok=True)
        return Finished(process.returncode, out, err, events)

    def qconvert(self, *args: str | Path, cwd: Path, seconds: float = 120) -> Finished:
        """Run a command as a user does."""
        return self.run("-m", "qconvert", *args, cwd=cwd, seconds=seconds)


def make_host(
    folder: Path,
    wheels: Sequence[str] = GPU,
    keep: Sequence[str] = (),
    libraries: Sequence[str] = generate.GPU,
    tensorrt: str = "10.16.1.11",
) -> Path:
    """Make a Python environment: the packages of the tests' one, and wheels over fake libraries.

    `keep` are GPU packages of the tests' environment that stay. `tensorrt` is the version that its
    packages seem to have, empty if they are not installed.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    site = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    links = {
        path.name: path
        for path in Path(sysconfig.get_path("purelib")).iterdir()
        if not REPLACED.match(path.name) or path.name.startswith(tuple(keep))
    }
    release = tensorrt.partition(".")[0]
    for wheel in wheels:
        place = packages() / ("tensorrt11" if "tensorrt_cu13" in wheel and release == "11" else "")
        links |= {path.name: path for path in (place / wheel).iterdir()}
    for path in SITE.rglob("*.p*"):
        name = str(path.relative_to(SITE))
        if tensorrt or not name.startswith("tensorrt"):
            links[name] = path
    for name in libraries:
        folder_of_it = generate.LIBRARIES[name].folder
        if folder_of_it == generate.TENSORRT and not name.endswith(f".{release}"):
            continue
        above = "../../../" if folder_of_it == generate.DRIVER else ""
        links[f"{above}{folder_of_it}/{name}"] = fakes() / name
    for name, path in links.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).symlink_to(path)
    for name in ("tensorrt_cu13", "tensorrt_cu13_libs") if tensorrt else ():
        metadata = site / f"{name}-{tensorrt}.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {tensorrt}\n")
    return folder


def make_rtx_host(folder: Path, libraries: Mapping[str, str] = BROUGHT) -> Path:
    """Make a Python environment for RTX GPUs: beside the packages, there is only a driver.

    ONNX Runtime and the builder of TensorRT for RTX are those of the tests' environment, and the
    plugin is real; `libraries` are ours in place of those that it brings along.
    """
    keep = ("onnxruntime", "tensorrt_rtx_")
    drivers = [name for name, it in generate.LIBRARIES.items() if it.folder == generate.DRIVER]
    make_host(folder, RTX, keep, drivers, tensorrt="")
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "tensorrt_rtx.py").symlink_to(SITE / "tensorrt_rtx.py")
    plugin = site / PLUGIN
    plugin.unlink()
    plugin.mkdir()
    for path in (packages() / RTX[0] / PLUGIN).iterdir():
        # It makes links to its libraries, which may be no links themselves.
        if ".so." in path.name and not path.is_symlink():
            ours = libraries.get(path.name)
            _copy(fakes() / ours if ours else path, plugin / path.name)
        elif path.is_file() and not path.is_symlink():
            (plugin / path.name).symlink_to(path)
    for card in range(2):
        # As Linux shows graphics cards; the script decides whether CUDA knows the GPU on the bus.
        device = folder / f"{generate.DRIVER}/drm/pci/0000:{card:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "device").write_text("0x2684\n")
        link = folder / f"{generate.DRIVER}/drm/card{card}/device"
        link.parent.mkdir()
        link.symlink_to(device)
    return folder


def _copy(source: Path, target: Path) -> None:
    """Make a second name for a file, or a copy where that is on another disk."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    create()
