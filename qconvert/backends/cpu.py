"""The CPU backend: ONNX Runtime's CPU provider on the ONNX file or an optimized copy."""

import errno
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qconvert.backends import base, int8_class, system_probe
from qconvert.backends.depthwise_padding import pad_depthwise
from qconvert.backends.float_silu import compute_silu_in_float
from qconvert.backends.system_probe import RUNTIMES, Installed
from qconvert.core import onnx_io
from qconvert.core.config import CpuConfig
from qconvert.core.errors import QConvertError
from qconvert.core.formats import QuantizedFormat, stores_weights_only
from qconvert.core.number_format import count
from qconvert.core.pip_command import pip_install
from qconvert.core.scales import Grid
from qconvert.graph.patterns import activation_sign
from qconvert.quantize import saturation
from qconvert.quantize.cpu_rules import ORT_CPU_RULES
from qconvert.quantize.dynamic import DYNAMIC_RULES
from qconvert.quantize.scheme import Scheme
from qconvert.quantize.weight_only import weight_only_scheme

PROVIDER = "CPUExecutionProvider"
OPTIMIZED = "optimized.onnx"
MIN_SAVING = 0.01  # share of bytes: an optimized copy that saves less is not kept
QUANT_PRECISION_ENTRY = "session.x64quantprecision"


def probe(installed: Installed) -> base.Availability:
    """Find out whether the CPU provider runs here."""
    if not installed.runtimes:
        reason = "onnxruntime is not installed"
        return base.Availability(False, False, reason=reason, cure=pip_install("cpu"))
    runtime = installed.runtimes[0]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    version = f"{runtime} {installed.packages[runtime]}, {count(threads or 1, 'thread')}"
    install = f"pip install --force-reinstall {runtime}"
    error, cure = system_probe.provider_error(PROVIDER, install)
    return base.Availability(not error, not error, version, error, cure)


def requirements() -> base.BackendRequirements:
    """Return the graphs that the CPU provider accepts.

    Its x86 kernels are three times slower on signed activations than on unsigned ones; its ARM
    kernels need signed ones.
    """
    is_arm = int8_class.is_arm(platform.machine())
    scheme = Scheme(
        "cpu",
        activations=Grid(8, symmetric=False, signed=is_arm),
        weights=Grid(8),
        integer_bias=True,
        rules=ORT_CPU_RULES,
        portable=not is_arm,
    )
    # Activations of MatMulInteger are unsigned on every CPU.
    dynamic = replace(
        scheme,
        activations=Grid(8, symmetric=False, signed=False),
        integer_bias=False,
        rules=DYNAMIC_RULES,
    )
    products = ("MatMul", "Gemm", "Gather")
    schemes: dict[QuantizedFormat, Scheme] = {
        "int8": scheme,
        "int8-dynamic": dynamic,
        "int8-weights": weight_only_scheme(
            "cpu", Grid(8), (*products, "Conv", "ConvTranspose"), "onnxruntime"
        ),
        # Zero points take half a byte for each group, and a third of the error away.
        "int4-weights": weight_only_scheme(
            "cpu", Grid(4, symmetric=False, signed=False), products, "onnxruntime"
        ),
    }
    unsupported = {"bf16": "ONNX Runtime has no bf16 kernels for the CPU"}
    return base.BackendRequirements(schemes, ("fp32",), unsupported=unsupported)


def cache_key(spec: base.BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model."""
    packages = system_probe.installed_packages()
    batch = _silu_batch(spec)
    silu = {"silu": f"in float at batch {batch}" if batch else "in integers"}
    return {
        "backend": "cpu",
        "precision": spec.precision,
        **(silu if spec.precision in base.INTEGER else {}),
        "runtime": ", ".join(f"{name} {packages[name]}" for name in RUNTIMES if name in packages),
        "machine": platform.machine(),
        "threads": str(spec.threads),
        **base.settings_as_text(base.read_settings(CpuConfig, spec, "cpu"), "threads"),
    }


def require_readable(graph: Path, spec: base.BuildSpec) -> None:
    """Accept the graph: ONNX Runtime ran it when it was cleaned."""


def build(
    graph: Path, spec: base.BuildSpec, folder: Path, progress: base.BuildProgressCallback
) -> base.Engine:
    """Copy the model, and keep ONNX Runtime's optimized copy if it is better.

    It is at least 1 % smaller, or rewritten for the kernels of this CPU. Neither needs a clock, so two
    builds agree. EfficientNet-Lite0 in INT8: 2.3 % smaller, loads in 11 ms instead of 45; in FP32: no
    smaller and no faster. FP16 is not tried: its copy is converted to float, and twice the size.
    """
    key = cache_key(spec)
    progress("copying the model", None)
    _, files = base.copy_graph(graph, folder)
    copy, notes = "the ONNX file", list[str]()
    if spec.precision in ("fp16", "bf16"):
        copy = "the ONNX file, as an optimized one would be in float"
    elif len(files) == 1:
        progress("optimizing a copy with ONNX Runtime", None)
        _optimize(folder)
        notes = _rewrite_copy(folder, _silu_batch(spec)) if spec.precision in base.INTEGER else []
        saving = 1 - (folder / OPTIMIZED).stat().st_size / (folder / base.GRAPH).stat().st_size
        if saving >= MIN_SAVING:
            size = f"{saving:.1%} smaller"
            notes.insert(0, f"loads ONNX Runtime's optimized copy, {size} than the ONNX file")
        if notes:
            files, copy = (OPTIMIZED,), "optimized"
        else:
            (folder / OPTIMIZED).unlink()
    made_with = {**key, "copy": copy, "integer instructions": int8_class.int8_class().name}
    if spec.precision in base.INTEGER and not stores_weights_only(spec.precision):
        quantized = onnx_io.load(folder / base.GRAPH)
        made_with["activations"] = activation_sign(quantized)
        sums = saturation.find_saturation(quantized)
        notes.append(saturation.describe_saturation(sums))
    return base.Engine(
        "cpu", spec.precision, folder, base.GRAPH, files, made_with, spec.threads, tuple(notes)
    )


def _silu_batch(spec: base.BuildSpec) -> int:
    """Return the batch size for which SiLU is computed in float, 0 for none: this CPU decides."""
    return spec.profile.opt_batch if int8_class.has_avx512() else 0


def _rewrite_copy(folder: Path, silu_batch: int) -> list[str]:
    """Rewrite the optimized copy for the kernels of this CPU; return notes that say how."""
    # ONNX Runtime wrote the file, so it needs no checks; not every schema of it is ONNX's.
    model, notes = ir.load(folder / OPTIMIZED), []
    if int8_class.is_x86(platform.machine()) and (padded := pad_depthwise(model.graph)):
        convolutions = count(padded, "depthwise convolution")
        notes.append(f"pads {convolutions} to multiples of 16 channels, which x86 computes faster")
    if silu_batch and (silus := compute_silu_in_float(model.graph, silu_batch)):
        notes.append(f"computes SiLU in float, which this CPU does faster ({count(silus, 'node')})")
    if notes:
        with base.explain_write_errors(folder):
            onnx_io.save(model, folder / OPTIMIZED)
    return notes


def _optimize(folder: Path) -> None:
    """Write ONNX Runtime's optimized copy.

    The level is the highest that does not depend on this CPU: layouts of weights are chosen when
    the copy is loaded, so the copy is right on other CPUs too.
    """
    from qconvert.backends import ort

    path, target, spec = (
        folder / base.GRAPH,
        folder / OPTIMIZED,
        base.LoadSpec(((PROVIDER, {}),), ()),
    )
    options = ort.session_options(spec)
    options.graph_optimization_level = ort.runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    with base.explain_write_errors(folder):
        try:
            ort.create_session(path, spec, options)
        except QConvertError:
            # If the graph loads without the copy, writing the copy failed.
            ort.create_session(path, spec)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def open(engine: base.Engine) -> base.Session:
    """Load an engine with the threads it was built for."""
    from qconvert.backends import ort, ort_coverage

    path, spec = engine.folder / engine.files[0], load_spec(engine)
    session = ort.create_session(path, spec)
    nodes = ort.nodes_by_provider(session)
    return ort.OrtSession(session, lambda: ort_coverage.kernel_coverage(path, spec, nodes))


def load_spec(engine: base.Engine) -> base.LoadSpec:
    """Return how ONNX Runtime loads an engine.

    A file quantized for TensorRT, which no build writes here, keeps its Q/DQ nodes. One with integer
    weights alone has them of convolutions, whose weights become float once, when it is loaded.
    """
    from qconvert.backends import ort

    settings = base.read_settings(CpuConfig, engine, "cpu")
    entries = {"session.intra_op.allow_spinning": str(int(settings.spinning))}
    may_saturate = False
    if stores_weights_only(engine.precision):
        entries["session.disable_quant_qdq"] = "1"
    elif engine.precision in base.INTEGER:
        model = onnx_io.load(engine.folder / engine.graph)
        may_saturate = not saturation.is_pair_safe(model)
        if ort.has_float_biases(model):
            entries["session.disable_quant_qdq"] = "1"
    return base.LoadSpec(
        providers=((PROVIDER, {}),),
        packages=((engine.made_with.get("runtime") or "onnxruntime").replace(" ", ">="),),
        config_entries=entries,
        threads=engine.threads,
        may_saturate=may_saturate,
    )


def triton_spec(engine: base.Engine) -> base.TritonSpec:
    """Return how Triton serves an engine: the ONNX file, for a runtime of another release."""
    threads = {"intra_op_thread_count": str(engine.threads)} if engine.threads else {}
    note = (
        "the server's x86 CPU needs VNNI: others multiply these weights in 16 bits, which overflow, "
        f"and Triton cannot set `{QUANT_PRECISION_ENTRY}`; `--portable` weights are exact on any"
    )
    notes = (note,) if load_spec(engine).may_saturate else ()
    return base.TritonSpec("onnxruntime_onnx", engine.graph, "CPU", parameters=threads, notes=notes)
