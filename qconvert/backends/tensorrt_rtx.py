"""The TensorRT for RTX backend: engines are built on any machine, and run on RTX GPUs.

ONNX Runtime's provider plugin loads them. Its options are those of release 0.5.0, whose header
lists them; where it does something else, a comment says so.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from qconvert.backends import base, cuda_runtime, nvinfer, subprocess_worker
from qconvert.backends.cuda import require_fixed_shapes
from qconvert.backends.nvinfer import CONTEXT, NativeBuildOptions
from qconvert.backends.system_probe import Installed, detect
from qconvert.backends.tensorrt import FIXED_SCALES, quantization_scheme, weight_only_schemes
from qconvert.backends.versions import why_too_old
from qconvert.core import cache, onnx_io
from qconvert.core.config import TensorrtRtxConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError, first_line
from qconvert.core.pip_command import pip_install
from qconvert.quantize.tensorrt_rules import RTX_RULES

PROVIDER = "NvTensorRTRTXExecutionProvider"
ENGINE = "model.engine"
BUILDER = "tensorrt-rtx-cu13"
PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
MODULE = cuda_runtime.RTX_PLUGIN
VENDOR = 0x10DE  # NVIDIA's number, by which ONNX Runtime knows the memory of the plugin's devices
KERNEL_CACHE = "nv_runtime_cache_path"
INSTALL = pip_install("tensorrt-rtx")


def probe(installed: Installed) -> base.Availability:
    """Find out whether engines can be built here, which needs no GPU, and whether they run."""
    version = installed.library_version("tensorrt-rtx")
    if not version:
        return base.Availability(False, False, reason=f"{BUILDER} is not installed", cure=INSTALL)
    version = f"tensorrt-rtx {version}"
    job = "qconvert.backends.nvinfer:prove_job"
    error, _ = subprocess_worker.why_it_fails(job, "tensorrt_rtx", product="TensorRT for RTX")
    if error:
        cure = f"pip install --force-reinstall {BUILDER}"
        return base.Availability(False, False, version, error, cure)
    reason, cure = _why_not_run(installed)
    return base.Availability(True, not reason, version, reason, cure)


def requirements() -> base.BackendRequirements:
    """Return the graphs that TensorRT for RTX accepts: the same as TensorRT."""
    return base.BackendRequirements(
        {
            "int8": quantization_scheme("tensorrt-rtx", RTX_RULES),
            # Engines of release 1.7 hold these integers as they are, of tables and convolutions too.
            **weight_only_schemes("tensorrt-rtx", "Gather", "Conv"),
        },
        ("fp32", "fp16", "bf16"),
        default_rest="fp16",
        unsupported={"int8-dynamic": FIXED_SCALES},
        notes=("TensorRT for RTX documents no INT8 convolution: measure before use",),
    )


def cache_key(spec: base.BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model; the machine does not."""
    return {
        "backend": "tensorrt-rtx",
        "precision": spec.precision,
        "profile": str(spec.profile),
        "builder": f"tensorrt-rtx {detect().library_version('tensorrt-rtx')}",
        **base.settings_as_text(_read_options(spec)[0]),
    }


def require_readable(graph: Path, spec: base.BuildSpec) -> None:
    """Refuse a graph with an operator that TensorRT for RTX lacks, or that no CUDA graph records."""
    if _read_options(spec)[0].cuda_graph:
        require_fixed_shapes(onnx_io.inputs(onnx_io.load(graph)))
    nvinfer.require_parsable("tensorrt_rtx", graph)


def build(
    graph: Path, spec: base.BuildSpec, folder: Path, progress: base.BuildProgressCallback
) -> base.Engine:
    """Build an engine for all RTX GPUs, with or without one here.

    Two builds of one graph may differ in their bytes; in INT8 they almost always do.
    """
    settings, profiles = _read_options(spec)
    if find_spec("tensorrt_rtx") is None:
        raise Unavailable(f"{BUILDER} is not installed", hint=INSTALL)
    model, _ = base.copy_graph(graph, folder)
    if settings.cuda_graph:
        require_fixed_shapes(onnx_io.inputs(model))
    options = NativeBuildOptions(onnx_io.inputs(model), profiles, settings.workspace)
    nvinfer.build_and_wrap("tensorrt_rtx", model, folder / ENGINE, options, PROVIDER, progress)
    made_with, notes = dict(cache_key(spec)), _kernel_notes((folder / ENGINE).read_bytes())
    files = CONTEXT, ENGINE
    return base.Engine(
        "tensorrt-rtx", spec.precision, folder, base.GRAPH, files, made_with, notes=notes
    )


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


def open(engine: base.Engine) -> base.Session:
    """Load an engine with the provider plugin, on an RTX GPU and nothing else."""
    settings = base.read_settings(TensorrtRtxConfig, engine, "tensorrt-rtx")
    reason, cure = _why_not_run(detect(), settings.device)
    if reason:
        raise Unavailable(
            f"engines of tensorrt-rtx do not run here: {reason}",
            hint=cure or "`qconvert bench` on a machine with an RTX GPU adds its measurements",
        )
    from qconvert.backends import ort

    spec = load_spec(engine)
    if not settings.runtime_cache:
        # Among the results of steps, so that `qconvert cache` lists and clears them.
        name = cache.file_sha256(engine.folder / engine.files[0])[:16]
        place = cache.open_default().root / "kernels" / name
        options = {**spec.providers[0][1], KERNEL_CACHE: str(place)}
        spec = replace(spec, providers=((PROVIDER, options),))
    spec = _with_usable_cache(spec, is_required=bool(settings.runtime_cache))
    stream = cuda_runtime.make_stream(settings.device)
    session = ort.create_session(engine.folder / engine.files[0], spec, stream=stream)

    def coverage() -> base.Coverage:
        nodes = ort.nodes_by_provider(session)
        counts = {provider: len(names) for provider, names in nodes.items()}
        return base.Coverage(counts, None, "the plugin does not report the precision of layers")

    return ort.OrtSession(
        session,
        coverage,
        "gpu",
        settings.device,
        settings.cuda_graph,
        stream,
        VENDOR,
        spec.profiles,
        spec.profile_entry,
    )


def _with_usable_cache(spec: base.LoadSpec, *, is_required: bool) -> base.LoadSpec:
    """Make the folder of the kernels: the plugin refuses to load an engine if it cannot.

    Without the folder that the user asked for, that is an error; else kernels are not kept.
    """
    options = dict(spec.providers[0][1])
    try:
        Path(options[KERNEL_CACHE]).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_required:
            raise QConvertError(
                f"`tensorrt-rtx.runtime-cache`: `{options[KERNEL_CACHE]}` cannot be written: "
                f"{error.strerror or first_line(error)}",
                hint="choose another folder with `--set tensorrt-rtx.runtime-cache=FOLDER`",
            ) from None
        del options[KERNEL_CACHE]
    return replace(spec, providers=((PROVIDER, options),))


def load_spec(engine: base.Engine) -> base.LoadSpec:
    """Return how ONNX Runtime loads an engine: with the provider of a plugin."""
    settings = base.read_settings(TensorrtRtxConfig, engine, "tensorrt-rtx")
    # Release 0.5.0 records CUDA graphs unless it is told not to, unlike its header says.
    options = {"enable_cuda_graph": str(int(settings.cuda_graph))}
    if settings.runtime_cache:
        options[KERNEL_CACHE] = settings.runtime_cache
    more = _read_profiles(settings)
    return base.LoadSpec(
        providers=((PROVIDER, options),),
        packages=("onnxruntime", PLUGIN),
        config_entries={"session.disable_cpu_ep_fallback": "1"},
        plugin=MODULE,
        cuda_graph=settings.cuda_graph,
        device=settings.device,
        profiles=(_built_profile(engine), *more) if more else (),
        profile_entry="nv_profile_index",
        kernel_cache=KERNEL_CACHE,
    )


def triton_spec(engine: base.Engine) -> base.TritonSpec:
    """Refuse the engine: Triton has no backend for it."""
    raise UsageError(
        "Triton has no backend for engines of TensorRT for RTX",
        hint="package an engine of another backend: `--engine NAME`, or `--format onnxruntime`",
    )


def _read_options(spec: base.BuildSpec) -> tuple[TensorrtRtxConfig, tuple[base.Profile, ...]]:
    """Read the settings of a build, and all its profiles."""
    settings = base.read_settings(TensorrtRtxConfig, spec, "tensorrt-rtx")
    return settings, (spec.profile, *_read_profiles(settings))


def _read_profiles(settings: TensorrtRtxConfig) -> tuple[base.Profile, ...]:
    """Read the profiles of an engine beside that of the build."""
    try:
        batches = [tuple(map(int, text.split(","))) for text in settings.more_profiles.split()]
        return tuple(
            base.Profile(minimum, optimum, maximum) for minimum, optimum, maximum in batches
        )
    except ValueError:
        raise UsageError(
            "`tensorrt-rtx.more-profiles` must list profiles of three ascending batch sizes, "
            f"got `{settings.more_profiles}`",
            hint="for example `1,8,32`, or `1,1,1 8,8,8` for two profiles",
        ) from None


def _built_profile(engine: base.Engine) -> base.Profile:
    """Return the profile that an engine was built with."""
    return base.Profile(*map(int, engine.made_with["profile"].split(",")))


def _why_not_run(installed: Installed, device: int | None = None) -> tuple[str, str]:
    """Return why engines do not run here and the fix, both empty if they do.

    They must run on the GPU `device`, or on any.
    """
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
    return _why_plugin_fails(device)


@functools.cache
def _why_plugin_fails(device: int | None) -> tuple[str, str]:
    """Load the plugin in a child process, once in this one: its libraries may crash."""
    job, product = "qconvert.backends.ort:prove_plugin", "the provider plugin"
    return subprocess_worker.why_it_fails(job, MODULE, PROVIDER, device, product=product)
