"""The TensorRT for RTX backend: engines are built on any machine, and run on RTX GPUs.

Loading follows the documentation of ONNX Runtime's provider plugin; it needs an RTX GPU.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from qconvert.backends import nvinfer, subprocess_worker
from qconvert.backends.base import (
    GRAPH,
    Availability,
    BackendRequirements,
    BuildProgressCallback,
    BuildSpec,
    Coverage,
    Engine,
    LoadSpec,
    Profile,
    Session,
    TritonSpec,
    copy_graph,
    read_settings,
    settings_as_text,
)
from qconvert.backends.nvinfer import CONTEXT, NativeBuildOptions
from qconvert.backends.system_probe import Installed, detect
from qconvert.backends.tensorrt import quantization_scheme
from qconvert.backends.versions import why_too_old
from qconvert.core import onnx_io
from qconvert.core.config import TensorrtRtxConfig
from qconvert.core.errors import Unavailable, UsageError
from qconvert.core.pip_command import pip_install
from qconvert.quantize.scheme import RTX_RULES

PROVIDER = "NvTensorRTRTXExecutionProvider"
ENGINE = "model.engine"
BUILDER = "tensorrt-rtx-cu13"
PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = pip_install("tensorrt-rtx")


def probe(installed: Installed) -> Availability:
    """Find out whether engines can be built here, which needs no GPU, and whether they run."""
    version = installed.library_version("tensorrt-rtx")
    if not version:
        return Availability(False, False, reason=f"{BUILDER} is not installed", cure=INSTALL)
    version = f"tensorrt-rtx {version}"
    job = "qconvert.backends.nvinfer:prove_job"
    error, _ = subprocess_worker.why_it_fails(job, "tensorrt_rtx", product="TensorRT for RTX")
    if error:
        cure = f"pip install --force-reinstall {BUILDER}"
        return Availability(False, False, version, error, cure)
    reason, cure = _why_not_run(installed)
    return Availability(True, not reason, version, reason, cure)


def requirements() -> BackendRequirements:
    """Return the graphs that TensorRT for RTX accepts: the same as TensorRT."""
    return BackendRequirements(
        quantization_scheme("tensorrt-rtx", RTX_RULES),
        ("fp32", "fp16", "bf16"),
        default_rest="fp16",
        notes=("TensorRT for RTX documents no INT8 convolution: measure before use",),
    )


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model; the machine does not."""
    return {
        "backend": "tensorrt-rtx",
        "precision": spec.precision,
        "profile": str(spec.profile),
        "builder": f"tensorrt-rtx {detect().library_version('tensorrt-rtx')}",
        **settings_as_text(_read_options(spec)[0]),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph with an operator that TensorRT for RTX lacks."""
    nvinfer.require_parsable("tensorrt_rtx", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, progress: BuildProgressCallback) -> Engine:
    """Build an engine for all RTX GPUs, with or without one here.

    Two builds of one graph may differ in their bytes; in INT8 they almost always do.
    """
    settings, profiles = _read_options(spec)
    if find_spec("tensorrt_rtx") is None:
        raise Unavailable(f"{BUILDER} is not installed", hint=INSTALL)
    model, _ = copy_graph(graph, folder)
    options = NativeBuildOptions(onnx_io.inputs(model), profiles, settings.workspace)
    nvinfer.build_and_wrap("tensorrt_rtx", model, folder / ENGINE, options, PROVIDER, progress)
    made_with, notes = dict(cache_key(spec)), _kernel_notes((folder / ENGINE).read_bytes())
    files = CONTEXT, ENGINE
    return Engine("tensorrt-rtx", spec.precision, folder, GRAPH, files, made_with, notes=notes)


def _kernel_notes(engine: bytes) -> tuple[str, ...]:
    """Say how much of an engine is the source of generated kernels, where that is much.

    The builder generates a kernel for what it fuses into no other, above all for scales between
    INT8 layers. Found by looking into engines of release 1.7; their format is not documented.
    """
    programs = [
        text for text in re.findall(rb"[\t\n\r -~]{4096,}", engine) if b"__global__" in text
    ]
    size = sum(map(len, programs))
    if size < 0.2 * len(engine):
        return ()
    return (
        f"{size / 1e6:.1f} of its {len(engine) / 1e6:.1f} MB are the source of {len(programs)} "
        "kernels that the GPU compiles at the first load: work between layers that the builder did "
        "not fuse into them, which costs time too: compare with fp16 before use",
    )


def open(engine: Engine) -> Session:
    """Load an engine with the provider plugin, on the first RTX GPU and nothing else."""
    reason, cure = _why_not_run(detect())
    if reason:
        raise Unavailable(
            f"engines of tensorrt-rtx do not run here: {reason}",
            hint=cure or "`qconvert bench` on a machine with an RTX GPU adds its measurements",
        )
    from qconvert.backends import ort

    session = ort.create_session(engine.folder / engine.files[0], load_spec(engine))

    def coverage() -> Coverage:
        nodes = ort.nodes_by_provider(session)
        counts = {provider: len(names) for provider, names in nodes.items()}
        return Coverage(counts, None, "the plugin does not report the precision of layers")

    # Inputs cannot be bound: the onnxruntime beside the plugin cannot allocate GPU memory.
    return ort.OrtSession(session, coverage)


def load_spec(engine: Engine) -> LoadSpec:
    """Return how ONNX Runtime loads an engine: with the provider of a plugin."""
    has_more = bool(engine.made_with.get("more-profiles"))
    return LoadSpec(
        providers=((PROVIDER, {"nv_multi_profile_enable": "1"} if has_more else {}),),
        packages=("onnxruntime", PLUGIN),
        config_entries={"session.disable_cpu_ep_fallback": "1"},
        plugin=MODULE,
    )


def triton_spec(engine: Engine) -> TritonSpec:
    """Refuse the engine: Triton has no backend for it."""
    raise UsageError(
        "Triton has no backend for engines of TensorRT for RTX",
        hint="package an engine of another backend: `--engine NAME`, or `--format onnxruntime`",
    )


def _read_options(spec: BuildSpec) -> tuple[TensorrtRtxConfig, tuple[Profile, ...]]:
    """Read the settings of a build, and all its profiles."""
    settings = read_settings(TensorrtRtxConfig, spec, "tensorrt-rtx")
    try:
        batches = [tuple(map(int, text.split(","))) for text in settings.more_profiles.split()]
        more = [Profile(minimum, optimum, maximum) for minimum, optimum, maximum in batches]
    except ValueError:
        raise UsageError(
            "`tensorrt-rtx.more-profiles` must list profiles of three ascending batch sizes, "
            f"got `{settings.more_profiles}`",
            hint="for example `1,8,32`, or `1,1,1 8,8,8` for two profiles",
        ) from None
    return settings, (spec.profile, *more)


def _why_not_run(installed: Installed) -> tuple[str, str]:
    """Return why engines do not run here and the fix, both empty if they do."""
    if installed.driver_error:
        return f"{installed.driver_error}; engines run on RTX GPUs", ""
    reason, cure = why_too_old(installed, 13)
    if reason:
        return reason, cure
    # From compute capability 12 on, all GPUs run RTX engines.
    capabilities = [gpu.capability for gpu in installed.gpus]
    if not any(item in ((8, 6), (8, 9)) or item >= (12, 0) for item in capabilities):
        names = (f"{gpu.name} ({'.'.join(map(str, gpu.capability))})" for gpu in installed.gpus)
        return f"no RTX GPU of compute capability 8.6, 8.9 or 12: {', '.join(names)}", ""
    if PLUGIN not in installed.packages:
        return "the provider plugin is not installed", INSTALL
    if "onnxruntime-gpu" in installed.packages:
        cure = f"pip uninstall -y onnxruntime-gpu && {INSTALL}"
        return "the provider plugin needs plain onnxruntime, not onnxruntime-gpu", cure
    job = "qconvert.backends.ort:prove_plugin"
    return subprocess_worker.why_it_fails(job, MODULE, PROVIDER, product="the provider plugin")
