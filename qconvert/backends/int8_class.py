"""How this CPU multiplies 8-bit integers, by the kernels that ONNX Runtime has for it.

ONNX Runtime's library of kernels (MLAS, `platform.cpp`) takes the first row whose instructions the
CPU has. Its AVX2 kernels without VNNI take three instructions to multiply and add 32 pairs of bytes,
two that multiply and one that only adds; floats take four. So bytes are 4/3 times as fast where all
of them wait for the same units, and twice where additions have their own.
"""

import ctypes
import platform
import re
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NOT_TIMED = "speed of INT8 not measured"
NO_VNNI = "INT8 is at most 1.3-2x as fast as FP32"
AT_MOST_TWICE = "no VNNI, so bytes are multiplied at most 1.3-2x as fast as floats"
WITH_VNNI = "on a CPU with VNNI expect about 2.3x (EfficientNet-Lite0, not measured here)"
WITH_DOTPROD = "CPUs with dotprod have instructions for it (not measured)"


@dataclass(frozen=True)
class Int8Class:
    """The instructions for 8-bit integers of a CPU, and what they mean for INT8.

    Where there is no dot product of bytes, `limit` says why INT8 gains little and where it gains
    more. With `saturates`, products of 8-bit weights may be added in saturating 16 bits.
    """

    name: str
    effect: str
    limit: str = ""
    saturates: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.effect}"


# Flags as Linux spells them.
AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
X86 = (
    (AVX2 | {"amx_tile", "amx_int8"}, Int8Class("AMX", f"matrix products; {NOT_TIMED}")),
    (
        AVX512 | {"avx512_vnni"},
        Int8Class("AVX-512 VNNI", "EfficientNet-Lite0 in INT8 ran 2.3x as fast as FP32"),
    ),
    (
        AVX512,
        Int8Class("AVX-512 without VNNI", NO_VNNI, f"{AT_MOST_TWICE}; {WITH_VNNI}", saturates=True),
    ),
    (AVX2 | {"avx_vnni"}, Int8Class("AVX-VNNI", f"dot products; {NOT_TIMED}")),
    (
        AVX2,
        Int8Class("AVX2 without VNNI", NO_VNNI, f"{AT_MOST_TWICE}; {WITH_VNNI}", saturates=True),
    ),
    # Its kernel multiplies in 16 bits and adds in 32; on Windows another one saturates.
    (
        frozenset({"sse2"}),
        Int8Class("SSE", f"no dot products; {NOT_TIMED}", f"neither AVX2 nor VNNI; {WITH_VNNI}"),
    ),
)
ARM = (
    (frozenset({"asimddp", "i8mm"}), Int8Class("i8mm", f"matrix products; {NOT_TIMED}")),
    (frozenset({"asimddp"}), Int8Class("dotprod", f"dot products; {NOT_TIMED}")),
    (
        frozenset({"asimd"}),
        Int8Class(
            "NEON without dotprod",
            f"no dot products; {NOT_TIMED}",
            f"no dot products of bytes; {WITH_DOTPROD}",
        ),
    ),
)
ARM_MACHINES, X86_MACHINES = ("aarch64", "arm64"), ("amd64", "i386", "i686", "x86_64")
UNKNOWN = "the system does not name its instructions"

# Any of these flags means that no product of bytes saturates.
EXACT_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimd")


@cache
def int8_class(root: Path = Path("/")) -> Int8Class:
    """Return the class of this CPU; `root` has `/proc`."""
    return classify(platform.machine(), cpu_flags(root))


def classify(machine: str, flags: Set[str]) -> Int8Class:
    """Return the class of an architecture with these flags; without any, it is unknown."""
    rows = X86 if is_x86(machine) else ARM if is_arm(machine) else ()
    unknown = Int8Class("unknown", UNKNOWN, saturates=is_x86(machine))
    return next((row for required, row in rows if required <= flags), unknown)


def is_arm(machine: str) -> bool:
    """Whether this is the name of 64-bit ARM, as Linux, macOS and Windows spell it."""
    return machine.lower() in ARM_MACHINES


def is_x86(machine: str) -> bool:
    """Whether this is the name of x86, as Linux, macOS and Windows spell it."""
    return machine.lower() in X86_MACHINES


def has_avx512(root: Path = Path("/")) -> bool:
    """Whether ONNX Runtime uses its AVX-512 kernels of floats on this CPU; `root` has `/proc`."""
    return is_x86(platform.machine()) and cpu_flags(root) >= AVX512


def recorded_class(name: str) -> Int8Class | None:
    """Return the class of the name that a report recorded, None for a name of another release."""
    return next((row for _, row in (*X86, *ARM) if row.name == name), None)


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the flags of this CPU as Linux spells them; none where the system has no list."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _apple_flags() if platform.system() == "Darwin" else frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _apple_flags() -> frozenset[str]:
    """Return the flags of an Apple processor; ONNX Runtime has no i8mm kernels for macOS."""
    has_dot_product, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    entry = b"hw.optional.arm.FEAT_DotProd"
    system = ctypes.CDLL(None)
    if system.sysctlbyname(entry, ctypes.byref(has_dot_product), ctypes.byref(size), None, 0):
        return frozenset()  # an Intel processor has no such entry
    return frozenset({"asimd", "asimddp"} if has_dot_product.value else {"asimd"})
