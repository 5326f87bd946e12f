"""ONNX Runtime's CPU provider."""

import errno
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.backends.base import (
    INTEGER,
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Engine,
    LoadSpec,
    Session,
    TritonSpec,
    read_settings,
    settings_as_text,
)
from qconvert.backends.engine_folder import GRAPH, EngineGraph, copy_graph, explain_write_errors
from qconvert.backends.system_probe import (
    RUNTIMES,
    Installed,
    installed_packages,
    integer_instructions,
    provider_error,
)
from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from qconvert.core.scales import Grid
from qconvert.quantize import rules_ort_cpu
from qconvert.quantize.scheme import Scheme

PROVIDER = "CPUExecutionProvider"
OPTIMIZED = "optimized.onnx"
WORTH = 0.01  # of the bytes: the least that pays for a second file
ARM = ("arm64", "aarch64")
SATURATES = (
    "this CPU multiplies bytes in 16 bits, which overflow: run the file with the session setting "
    "`session.x64quantprecision` = 1, or quantize with `--weight-bits 7`"
)
QUANT_PRECISION_ENTRY = "session.x64quantprecision"
UNSAFE = (
    "with weights of 8 bits a server's x86 CPU needs VNNI: others multiply bytes in 16 bits, which "
    f"overflow, and Triton cannot set `{QUANT_PRECISION_ENTRY}`; `--weight-bits 7` is safe on any"
)


def probe(installed: Installed) -> Availability:
    """Say whether the CPU provider runs here."""
    if not installed.runtimes:
        reason = "onnxruntime is not installed"
        return Availability(False, False, reason=reason, cure='pip install "qconvert[cpu]"')
    name = installed.runtimes[0]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    integer = integer_instructions()
    parts = [f"{name} {installed.packages[name]}", f"{threads} threads", integer]
    version = ", ".join(part for part in parts if part)
    if trouble := provider_error(PROVIDER):
        cure = f"pip install --force-reinstall {name}"
        return Availability(False, False, version, trouble, cure)
    return Availability(True, True, version)


def requirements() -> BackendRequirements:
    """Say what graphs the CPU provider takes.

    Its kernels for x86 want unsigned activations and are three times slower on signed ones; those
    for ARM want them signed.
    """
    arm = platform.machine().lower() in ARM
    scheme = Scheme(
        "cpu",
        activations=Grid(8, symmetric=False, signed=arm),
        weights=Grid(8),
        integer_bias=True,
        rules=rules_ort_cpu.RULES,
    )
    refused = {"bf16": "ONNX Runtime has no bf16 kernels for the CPU"}
    notes = () if arm or integer_instructions() else (SATURATES,)
    return BackendRequirements(scheme, ("fp32",), unsupported=refused, notes=notes)


@dataclass(frozen=True)
class CpuSettings:
    """What a build for the CPU can be told.

    Threads that spin while idle make a run on two quiet cores a tenth faster, and one beside other
    work, or other engines, two to five times slower.
    """

    spinning: bool = False


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model."""
    return {
        "backend": "cpu",
        "precision": spec.precision,
        "runtime": _runtime(),
        "machine": platform.machine(),
        "threads": str(spec.threads),
        **settings_as_text(read_settings(CpuSettings, spec, "cpu")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Take it: ONNX Runtime has run it to clean it."""


def build(graph: Path, spec: BuildSpec, folder: Path, heard: BuildProgressCallback) -> Engine:
    """Copy the model, and keep the runtime's optimized copy beside it where that is lighter.

    Lighter is at least a hundredth smaller, which needs no clock and so comes out the same each
    time. EfficientNet-Lite0 in INT8: 2.3 % smaller, loads in 11 ms instead of 45; in FP32: no
    smaller and no faster. FP16 is not tried, its copy grows to float and twice the bytes.
    """
    made_with = cache_key(spec)
    heard("copying the model", None)
    kept = copy_graph(graph, folder)
    files, copy, note = kept.files, "portable", ""
    if spec.precision in ("fp16", "bf16"):
        copy = "portable, as the optimized one would be in float"
    elif len(kept.files) == 1:
        heard("asking ONNX Runtime for its optimized copy", None)
        if note := _optimized(kept):
            files, copy = (OPTIMIZED,), "optimized"
    return Engine(
        backend="cpu",
        precision=spec.precision,
        folder=folder,
        graph=GRAPH,
        files=files,
        made_with={**made_with, "copy": copy, "integer instructions": integer_instructions()},
        threads=spec.threads,
        notes=(note,) if note else (),
    )


def open(engine: Engine) -> Session:
    """Load an engine with the threads it was built for."""
    from qconvert.backends import ort

    path, found = engine.folder / engine.files[0], load_spec(engine)
    session = ort.create_session(path, _options(found), [PROVIDER])
    return ort.OrtSession(session, lambda: ort.kernel_coverage(path, _options(found), [PROVIDER]))


def _options(found: LoadSpec) -> Any:
    from qconvert.backends import ort

    entries = {**found.config_entries, QUANT_PRECISION_ENTRY: ort.x64_quant_precision()}
    return ort.session_options(found.threads, entries)


def load_spec(engine: Engine) -> LoadSpec:
    """Say how ONNX Runtime loads an engine; whether integers overflow is up to the machine.

    A file that was quantized for TensorRT, which no build leaves here, is computed as it stands.
    """
    spinning = engine.made_with.get("spinning") == "True"
    literal = engine.precision in INTEGER and _is_literal(engine)
    return LoadSpec(
        providers=((PROVIDER, {}),),
        packages=((engine.made_with.get("runtime") or "onnxruntime").replace(" ", ">="),),
        config_entries={
            "session.intra_op.allow_spinning": str(int(spinning)),
            **({"session.disable_quant_qdq": "1"} if literal else {}),
        },
        threads=engine.threads,
        integer_kernels=engine.precision in INTEGER,
    )


def _is_literal(engine: Engine) -> bool:
    from qconvert.backends.ort import has_float_biases

    return has_float_biases(onnx_io.load(engine.folder / engine.graph))


def triton_spec(engine: Engine) -> TritonSpec:
    """Say how Triton serves an engine: by the portable ONNX, as its runtime is another release."""
    threads = {"intra_op_thread_count": str(engine.threads)} if engine.threads else {}
    notes = (UNSAFE,) if engine.precision in INTEGER else ()
    return TritonSpec("onnxruntime_onnx", engine.graph, "CPU", parameters=threads, notes=notes)


def _optimized(kept: EngineGraph) -> str:
    """Write the optimized copy and say why it stays, or nothing where it does not.

    Of the runtime's levels it takes the last one that knows nothing of this CPU: layouts of weights
    are chosen when the copy is loaded, so the copy is right on other CPUs too.
    """
    from qconvert.backends import ort

    target = kept.folder / OPTIMIZED
    chosen = ort.session_options(level=ort.OPTIMIZE_EXTENDED)
    chosen.optimized_model_filepath = str(target)
    with explain_write_errors(kept.folder):
        try:
            ort.create_session(kept.path, chosen, [PROVIDER])
        except QConvertError:
            ort.create_session(kept.path, ort.session_options(), [PROVIDER])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None  # the copy, then
        less = 1 - target.stat().st_size / kept.bytes
        if less >= WORTH:
            return f"loads ONNX Runtime's optimized copy, {less:.1%} smaller than the portable ONNX"
        target.unlink()
    return ""


def _runtime() -> str:
    found = installed_packages()
    return ", ".join(f"{name} {found[name]}" for name in RUNTIMES if name in found)
