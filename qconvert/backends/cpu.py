"""ONNX Runtime's CPU provider."""

import errno
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert import onnx_io
from qconvert.backends.base import INTEGER, Availability, BuildSpec, Engine, Heard, Session, Wants
from qconvert.backends.folder import GRAPH, Kept, keep, writing
from qconvert.backends.installed import (
    RUNTIMES,
    Installed,
    integer_instructions,
    packages,
)
from qconvert.backends.outside import Loading, Served
from qconvert.backends.settings import settings, told
from qconvert.backends.trial import why_not
from qconvert.errors import QConvertError
from qconvert.quantize import integer_chains
from qconvert.quantize.scheme import Scheme
from qconvert.scales import Grid

PROVIDER = "CPUExecutionProvider"
OPTIMIZED = "optimized.onnx"
WORTH = 0.01  # of the bytes: the least that pays for a second file
ARM = ("arm64", "aarch64")
SATURATES = (
    "this CPU multiplies bytes in 16 bits, which overflow: run the file with the session setting "
    "`session.x64quantprecision` = 1, or quantize with `--weight-bits 7`"
)
EXACT = "session.x64quantprecision"
UNSAFE = (
    "with weights of 8 bits a server's x86 CPU needs VNNI: others multiply bytes in 16 bits, which "
    f"overflow, and Triton cannot set `{EXACT}`; `--weight-bits 7` is safe on any"
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
    if trouble := why_not(PROVIDER):
        cure = f"pip install --force-reinstall {name}"
        return Availability(False, False, version, trouble, cure)
    return Availability(True, True, version)


def wants() -> Wants:
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
        rules=integer_chains.RULES,
    )
    refused = {"bf16": "ONNX Runtime has no bf16 kernels for the CPU"}
    notes = () if arm or integer_instructions() else (SATURATES,)
    return Wants(scheme, ("fp32",), refused=refused, notes=notes)


@dataclass(frozen=True)
class Settings:
    """What a build for the CPU can be told.

    Threads that spin while idle make a run on two quiet cores a tenth faster, and one beside other
    work, or other engines, two to five times slower.
    """

    spinning: bool = False


def recipe(spec: BuildSpec) -> Mapping[str, str]:
    """Return all that decides a build beside the model."""
    return {
        "backend": "cpu",
        "precision": spec.precision,
        "runtime": _runtime(),
        "machine": platform.machine(),
        "threads": str(spec.threads),
        **told(settings(Settings, spec, "cpu")),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Take it: ONNX Runtime has run it to clean it."""


def build(graph: Path, spec: BuildSpec, folder: Path, heard: Heard) -> Engine:
    """Copy the model, and keep the runtime's optimized copy beside it where that is lighter.

    Lighter is at least a hundredth smaller, which needs no clock and so comes out the same each
    time. EfficientNet-Lite0 in INT8: 2.3 % smaller, loads in 11 ms instead of 45; in FP32: no
    smaller and no faster. FP16 is not tried, its copy grows to float and twice the bytes.
    """
    made_with = recipe(spec)
    heard("copying the model", None)
    kept = keep(graph, folder)
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
    from qconvert.backends import ort_session

    path, found = engine.folder / engine.files[0], loading(engine)
    session = ort_session.start(path, _options(found), [PROVIDER])
    return ort_session.OrtSession(
        session, lambda: ort_session.kernels(path, _options(found), [PROVIDER])
    )


def _options(found: Loading) -> Any:
    from qconvert.backends import ort, ort_session

    entries = {**found.entries, EXACT: ort.exact_integers()}
    return ort_session.options(found.threads, entries)


def loading(engine: Engine) -> Loading:
    """Say how ONNX Runtime loads an engine; whether integers overflow is up to the machine.

    A file that was quantized for TensorRT, which no build leaves here, is computed as it stands.
    """
    spinning = engine.made_with.get("spinning") == "True"
    literal = engine.precision in INTEGER and _is_literal(engine)
    return Loading(
        providers=((PROVIDER, {}),),
        packages=((engine.made_with.get("runtime") or "onnxruntime").replace(" ", ">="),),
        entries={
            "session.intra_op.allow_spinning": str(int(spinning)),
            **({"session.disable_quant_qdq": "1"} if literal else {}),
        },
        threads=engine.threads,
        integers=engine.precision in INTEGER,
    )


def _is_literal(engine: Engine) -> bool:
    from qconvert.backends.ort import has_float_biases

    return has_float_biases(onnx_io.load(engine.folder / engine.graph))


def served(engine: Engine) -> Served:
    """Say how Triton serves an engine: by the portable ONNX, as its runtime is another release."""
    threads = {"intra_op_thread_count": str(engine.threads)} if engine.threads else {}
    notes = (UNSAFE,) if engine.precision in INTEGER else ()
    return Served("onnxruntime_onnx", engine.graph, "CPU", parameters=threads, notes=notes)


def _optimized(kept: Kept) -> str:
    """Write the optimized copy and say why it stays, or nothing where it does not.

    Of the runtime's levels it takes the last one that knows nothing of this CPU: layouts of weights
    are chosen when the copy is loaded, so the copy is right on other CPUs too.
    """
    from qconvert.backends import ort_session

    target = kept.folder / OPTIMIZED
    chosen = ort_session.options(level=ort_session.EXTENDED)
    chosen.optimized_model_filepath = str(target)
    with writing(kept.folder):
        try:
            ort_session.start(kept.path, chosen, [PROVIDER])
        except QConvertError:
            ort_session.start(kept.path, ort_session.options(), [PROVIDER])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None  # the copy, then
        less = 1 - target.stat().st_size / kept.bytes
        if less >= WORTH:
            return f"loads ONNX Runtime's optimized copy, {less:.1%} smaller than the portable ONNX"
        target.unlink()
    return ""


def _runtime() -> str:
    found = packages()
    return ", ".join(f"{name} {found[name]}" for name in RUNTIMES if name in found)
