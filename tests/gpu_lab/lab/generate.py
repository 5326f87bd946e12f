"""Compile the fake libraries: our sources, and stubs for all other functions that wheels call."""

import hashlib
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert.core import atomic

FAKES = Path(__file__).parent / "fakes"


@dataclass(frozen=True)
class Library:
    """A fake library: its source, the others it is linked with, and the folder of a host it is in.

    Python packages bring the libraries of CUDA and TensorRT, the driver brings the rest.
    """

    folder: str
    source: str = ""
    needs: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()


DRIVER, CUDA, CUDNN, TENSORRT = "driver", "nvidia/cu13/lib", "nvidia/cudnn/lib", "tensorrt_libs"
RTX = "the folder of the plugin"
SYSFS = "libgpu_lab_sysfs.so"
# In the order of their links.
LIBRARIES = {
    "libcuda.so.1": Library(DRIVER, "cuda.c"),
    "libnvidia-ml.so.1": Library(DRIVER, "nvml.c"),
    "libcudart.so.13": Library(CUDA, "cudart.c"),
    "libcublasLt.so.13": Library(CUDA, "cublaslt.c"),
    "libcublas.so.13": Library(CUDA, needs=("libcublasLt.so.13",)),
    "libcurand.so.10": Library(CUDA),
    "libcudnn.so.9": Library(CUDNN, "cudnn.c"),
}
for release in ("10", "11"):
    defines, nvinfer = (f"-DTENSORRT={release}",), f"libnvinfer.so.{release}"
    LIBRARIES |= {
        nvinfer: Library(TENSORRT, "nvinfer.cpp", ("libcudart.so.13",), defines),
        f"libnvonnxparser.so.{release}": Library(TENSORRT, "nvonnxparser.cpp", (nvinfer,), defines),
        f"libnvinfer_plugin.so.{release}": Library(
            TENSORRT, "nvinfer_plugin.cpp", (nvinfer,), defines
        ),
    }
GPU = tuple(LIBRARIES)
LIBRARIES |= {
    # Its tables are those of TensorRT 11.
    "libtensorrt_rtx.so.1": Library(RTX, "nvinfer.cpp", defines=("-DTENSORRT=11", "-DRTX")),
    SYSFS: Library(DRIVER, "sysfs.c"),
}


def compile_fakes(callers: Sequence[Path], headers: Path, folder: Path) -> Path:
    """Compile the libraries into a folder named after their sources, once, and return it.

    `callers` are the libraries of the wheels, which call the fakes.
    """
    sources = b"".join(path.read_bytes() for path in (Path(__file__), *sorted(FAKES.iterdir())))
    target = folder / hashlib.sha256(sources).hexdigest()[:12]
    if not target.is_dir():
        symbols = wanted_symbols(callers)
        with atomic.temporary_folder(folder) as place:
            for name, library in LIBRARIES.items():
                compile_library(name, library, symbols[name], headers, place)
            for leftover in (*place.glob("*.o"), *place.glob("*.c"), *place.glob("*.map")):
                leftover.unlink()
            if not target.is_dir():
                place.rename(target)
    return target


def wanted_symbols(callers: Sequence[Path]) -> Mapping[str, set[str]]:
    """Return the functions that the libraries of the wheels take from each fake."""
    symbols: dict[str, set[str]] = defaultdict(set)
    for caller in callers:
        imports = run("nm", "-D", "--undefined-only", caller)
        for name, library in re.findall(r" U (\w+)@(lib\S+)", imports):
            symbols[library].add(name)
        # The driver's functions have no versions, and those of cuDNN are looked up by name.
        symbols["libcuda.so.1"] |= set(re.findall(r" U (cu[A-Z]\w+)\n", imports))
        if caller.name == "libonnxruntime_providers_cuda.so":
            texts = re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", caller.read_bytes())
            symbols["libcudnn.so.9"] |= {text.decode() for text in texts}
    return symbols


def compile_library(
    name: str, library: Library, symbols: set[str], headers: Path, place: Path
) -> None:
    """Compile one library, whose functions carry its name as their version, as in the real one."""
    flags = ["-fPIC", "-Wall", "-Wno-unused-parameter", f"-I{headers}", *library.defines]
    objects = []
    if library.source:
        source, compiled = FAKES / library.source, place / f"{name}.o"
        compiler = ("g++", "-std=c++17") if source.suffix == ".cpp" else ("gcc", "-std=gnu17")
        run(*compiler, *flags, "-c", source, "-o", compiled)
        objects.append(compiled)
        symbols = symbols - set(re.findall(r" T (\w+)\n", run("nm", compiled)))
    stubs = place / f"{name}.c"
    stubs.write_text(
        "".join(f"long {symbol}(void) {{ return 0; }}\n" for symbol in sorted(symbols))
    )
    version = place / f"{name}.map"
    version.write_text(f"{name} {{ global: *; }};\n")
    versioned = [f"-Wl,--version-script,{version}"] if library.folder in (CUDA, CUDNN) else []
    linker = "g++" if library.source.endswith("cpp") else "gcc"
    needs = [f"-l:{other}" for other in library.needs]
    run(
        *(linker, "-shared", *flags, f"-Wl,-soname,{name}", *versioned, "-o", str(place / name)),
        *("-fno-builtin", "-xc", str(stubs), "-xnone", *map(str, objects)),
        *("-Wl,--no-as-needed", f"-L{place}", *needs),
    )


def run(*command: str | Path) -> str:
    """Run a program of the compiler's, and return its output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout
