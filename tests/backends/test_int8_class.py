"""The class of a CPU's integer instructions, from what systems say of real processors."""

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from qconvert.backends import cpu, int8_class, system_probe
from qconvert.backends.int8_class import ARM, EXACT_FLAGS, X86, classify, recorded_class
from qconvert.backends.system_probe import Installed

# `flags` or `Features` of /proc/cpuinfo as these processors have them, from `fxsr` on.
X86_CPUS = {
    "Nehalem": (
        "SSE",
        "fxsr sse sse2 ht syscall nx rdtscp lm constant_tsc pni ssse3 cx16 sse4_1 sse4_2 popcnt "
        "lahf_lm",
    ),
    "Sandy Bridge": (
        "SSE",
        "fxsr sse sse2 ss ht syscall nx rdtscp lm pni pclmulqdq ssse3 cx16 pcid sse4_1 sse4_2 "
        "x2apic popcnt tsc_deadline_timer aes xsave avx lahf_lm xsaveopt",
    ),
    "Haswell": (
        "AVX2 without VNNI",
        "fxsr sse sse2 ht syscall nx rdtscp lm constant_tsc rep_good nopl xtopology pni pclmulqdq "
        "ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand "
        "hypervisor lahf_lm abm invpcid_single pti fsgsbase bmi1 avx2 smep bmi2 erms invpcid "
        "xsaveopt",
    ),
    "EPYC Milan": (
        "AVX2 without VNNI",
        "fxsr sse sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl "
        "xtopology nonstop_tsc cpuid extd_apicid tsc_known_freq pni pclmulqdq ssse3 fma cx16 pcid "
        "sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave avx f16c rdrand hypervisor "
        "lahf_lm abm sse4a misalignsse 3dnowprefetch osvw topoext ssbd ibrs ibpb stibp vmmcall "
        "fsgsbase tsc_adjust bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb "
        "sha_ni xsaveopt xsavec xgetbv1 xsaves clzero umip pku ospke vaes vpclmulqdq rdpid fsrm",
    ),
    "Skylake-SP": (
        "AVX-512 without VNNI",
        "fxsr sse sse2 ss ht syscall nx pdpe1gb rdtscp lm pni pclmulqdq ssse3 fma cx16 pcid sse4_1 "
        "sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand hypervisor lahf_lm abm fsgsbase bmi1 "
        "avx2 smep bmi2 erms invpcid mpx avx512f avx512dq rdseed adx smap clflushopt clwb avx512cd "
        "avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves",
    ),
    "Ice Lake": (
        "AVX-512 VNNI",
        "fxsr sse sse2 ht syscall nx pdpe1gb rdtscp lm constant_tsc pni pclmulqdq ssse3 fma cx16 "
        "pcid sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave avx f16c rdrand "
        "hypervisor lahf_lm abm fsgsbase bmi1 avx2 smep bmi2 erms invpcid avx512f avx512dq rdseed "
        "adx smap avx512ifma clflushopt clwb avx512cd sha_ni avx512bw avx512vl xsaveopt xsavec "
        "xgetbv1 arat avx512vbmi umip pku ospke avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni "
        "avx512_bitalg avx512_vpopcntdq md_clear arch_capabilities",
    ),
    "Sapphire Rapids": (
        "AMX",
        "fxsr sse sse2 ss ht syscall nx pdpe1gb rdtscp lm pni pclmulqdq ssse3 fma cx16 pcid sse4_1 "
        "sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand hypervisor lahf_lm abm fsgsbase "
        "tsc_adjust bmi1 avx2 smep bmi2 erms invpcid rtm avx512f avx512dq rdseed adx smap "
        "avx512ifma clflushopt clwb avx512cd sha_ni avx512bw avx512vl xsaveopt xsavec xgetbv1 "
        "xsaves avx_vnni avx512_bf16 arat avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq "
        "avx512_vnni avx512_bitalg avx512_vpopcntdq la57 rdpid serialize tsxldtrk amx_bf16 "
        "avx512_fp16 amx_tile amx_int8 arch_capabilities",
    ),
    "Alder Lake": (
        "AVX-VNNI",
        "fxsr sse sse2 ss ht tm pbe syscall nx pdpe1gb rdtscp lm pni pclmulqdq ssse3 sdbg fma cx16 "
        "sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave avx f16c rdrand lahf_lm "
        "abm fsgsbase tsc_adjust bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb "
        "intel_pt sha_ni xsaveopt xsavec xgetbv1 xsaves split_lock_detect avx_vnni dtherm ida arat "
        "hfi umip pku ospke waitpkg gfni vaes vpclmulqdq rdpid movdiri movdir64b fsrm serialize",
    ),
}
NEOVERSE_N1 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp ssbs"
)
ARM_CPUS = {
    "Cortex-A72": ("NEON without dotprod", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
    "Graviton2": ("dotprod", NEOVERSE_N1),
    "Graviton3": (
        "i8mm",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma "
        "lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca "
        "pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng",
    ),
}
SATURATING = {"Haswell", "EPYC Milan", "Skylake-SP"}


def write_cpuinfo(root: Path, is_arm: bool, flags: str) -> Path:
    name = "Features\t" if is_arm else "model name\t: Some CPU\nflags\t\t"
    one = f"processor\t: 0\n{name}: {flags}\n\n"
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(one + one.replace(": 0", ": 1"))
    return root


@pytest.mark.parametrize("name", [*X86_CPUS, *ARM_CPUS])
def test_class_follows_from_the_flags(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_arm = name in ARM_CPUS
    expected, flags = (ARM_CPUS if is_arm else X86_CPUS)[name]
    monkeypatch.setattr(platform, "machine", lambda: "aarch64" if is_arm else "x86_64")
    result = int8_class.int8_class(write_cpuinfo(tmp_path, is_arm, flags))
    assert result.name == expected
    assert int8_class.has_avx512(tmp_path) == (expected == "AMX" or "AVX-512" in expected)
    assert result.saturates == (name in SATURATING)
    assert bool(result.limit) == (name in SATURATING | {"Nehalem", "Sandy Bridge", "Cortex-A72"})
    # A package's script, which has no class, must not run a saturating kernel.
    if result.saturates:
        assert not set(EXACT_FLAGS) & set(flags.split())


def test_lines_of_all_classes_fit_a_terminal() -> None:
    classes = [row for _, row in (*X86, *ARM)] + [classify("x86_64", frozenset())]
    assert all(len(f"INT8 on CPU    {row}") <= 80 for row in classes)
    assert all(recorded_class(row.name) == row for row in classes[:-1])
    assert recorded_class("VNNI") is None


@pytest.mark.parametrize(
    ("machine", "saturates"),
    [("AMD64", True), ("x86_64", True), ("ARM64", False), ("riscv64", False)],
)
def test_class_is_unknown_where_no_system_says(
    machine: str, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    result = int8_class.int8_class(tmp_path)
    assert (result.name, result.limit, result.saturates) == ("unknown", "", saturates)


@pytest.mark.parametrize(
    ("machine", "value", "expected"),
    [("arm64", 1, "dotprod"), ("arm64", 0, "NEON without dotprod"), ("x86_64", None, "unknown")],
)
def test_apple_processors_are_asked_by_sysctl(
    machine: str, value: int | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class System:
        """The C library of macOS."""

        def __init__(self, name: None) -> None:
            pass

        def sysctlbyname(self, name: bytes, result: Any, size: Any, new: None, length: int) -> int:
            assert (name, new, length) == (b"hw.optional.arm.FEAT_DotProd", None, 0)
            if value is None:
                return -1
            result._obj.value = value
            return 0

    monkeypatch.setattr(ctypes, "CDLL", System)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert int8_class.int8_class(tmp_path).name == expected


def test_probe_counts_the_one_core_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(system_probe, "provider_error", lambda *_: ("", ""))
    assert cpu.probe(Installed({"onnxruntime": "1.32.0"})).version == "onnxruntime 1.32.0, 1 thread"
