"""The options of ONNX Runtime's TensorRT provider, as pure functions of a build."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qconvert.backends.base import INTEGER, BuildSpec, LoadSpec, Profile, read_settings
from qconvert.backends.versions import NetworkTypes
from qconvert.core.config import TensorrtConfig
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan import RestPrecision

PROVIDER = "TensorrtExecutionProvider"
FALLBACKS = ("CUDAExecutionProvider", "CPUExecutionProvider")
CONTEXT = "model_ctx.onnx"
PREFIX = "model"

# The precision beside INT8 where a build does not set one.
DEFAULT_REST: RestPrecision = "fp16"


def read_options(spec: BuildSpec) -> TensorrtConfig:
    """Read the settings of a build."""
    settings = read_settings(TensorrtConfig, spec, "tensorrt")
    if settings.builder == "native" and settings.allow_fallback:
        raise UsageError(
            "`tensorrt`: `allow-fallback` has no effect with the native builder",
            hint="leave it out, or set `tensorrt.builder` = provider",
        )
    return settings


def settings_of_build(made_with: Mapping[str, str]) -> TensorrtConfig:
    """Return those settings of a build that decide how its engine is loaded."""
    builder: Any = made_with["builder"]
    return TensorrtConfig(
        builder=builder,
        device=int(made_with["device"]),
        weight_stripped=made_with["weight-stripped"] == "True",
        cuda_graph=made_with["cuda-graph"] == "True",
        allow_fallback=made_with["allow-fallback"] == "True",
    )


def provider_options(
    spec: BuildSpec, folder: Path, runtime: NetworkTypes, inputs: Sequence[TensorSpec]
) -> dict[str, str]:
    """Return the options with which the provider builds an engine into a folder.

    The provider writes a context model, which names the engine and loads it without a rebuild. It
    can do so for whole graphs only; if other providers may take nodes, a cache of engines in the
    same folder takes its place.
    """
    settings = read_options(spec)
    options = {
        **_device(settings),
        **precision_flags(spec, runtime),
        **profile_options(spec.profile, inputs),
        "trt_builder_optimization_level": str(settings.level),
    }
    if settings.workspace:
        options["trt_max_workspace_size"] = str(settings.workspace * 2**20)
    if settings.hardware_compatible:
        options["trt_engine_hw_compatible"] = "1"
    if settings.timing_cache:
        options["trt_timing_cache_enable"] = "1"
        options["trt_timing_cache_path"] = settings.timing_cache
    options |= _stripped(settings, folder)
    if settings.allow_fallback:
        return options | _engine_cache(folder)
    # Without a cache path, engines lie beside the context model, which cannot name other places.
    return options | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_prefix": PREFIX,
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(folder / CONTEXT),
        "trt_ep_context_embed_mode": "0",
    }


def load_options(settings: TensorrtConfig, folder: Path) -> dict[str, str]:
    """Return the options with which the provider loads an engine; profiles are in the engine."""
    options = _device(settings) | _stripped(settings, folder)
    return options | (_engine_cache(folder) if settings.allow_fallback else {})


def load_spec(settings: TensorrtConfig, options: Mapping[str, str], version: str) -> LoadSpec:
    """Return how ONNX Runtime builds or loads an engine with these options of the provider.

    ONNX Runtime's own rewrites would take Q/DQ pairs apart before TensorRT sees them.
    """
    fallbacks = FALLBACKS if settings.allow_fallback else ()
    return LoadSpec(
        providers=((PROVIDER, options), *((name, {}) for name in fallbacks)),
        packages=("onnxruntime-gpu[cuda,cudnn]", f"tensorrt-cu13=={version}"),
        config_entries={} if fallbacks else {"session.disable_cpu_ep_fallback": "1"},
        modules=("tensorrt",),
        optimize_graph=False,
        cuda_graph=settings.cuda_graph,
    )


def precision_flags(spec: BuildSpec, runtime: NetworkTypes) -> dict[str, str]:
    """Return the precision flags, none if the graph carries its types.

    INT8 without a second flag would leave all other layers in float32.
    """
    if not runtime.flags:
        return {}
    is_integer = spec.precision in INTEGER
    precisions = (spec.rest or DEFAULT_REST, "int8") if is_integer else (spec.precision,)
    flags = {f"trt_{precision}_enable": "1" for precision in precisions if precision != "fp32"}
    if "trt_fp16_enable" in flags:
        flags["trt_layer_norm_fp32_fallback"] = "1"  # its sums of squares overflow in fp16
    return flags


def profile_options(profile: Profile, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the minimum, optimal and maximum shape of every input with a dynamic batch.

    Unless all such inputs have all three, the provider rebuilds the engine for every new shape.
    """
    dynamic = dynamic_inputs(inputs)
    if not dynamic:
        return {}
    batches = {"min": profile.min_batch, "opt": profile.opt_batch, "max": profile.max_batch}
    return {
        f"trt_profile_{name}_shapes": ",".join(_shape(spec, batch) for spec in dynamic)
        for name, batch in batches.items()
    }


def dynamic_inputs(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the inputs whose batch is dynamic; refuse any other dynamic dimension."""
    for spec in inputs:
        if spec.has_dynamic_shape:
            raise UsageError(
                f"an engine needs the sizes of `{spec}`, only the batch may be open",
                hint=f"set them with `--input {spec.name}:1x3x224x224` when exporting",
            )
    return [spec for spec in inputs if spec.shape and not isinstance(spec.shape[0], int)]


def engine_files(
    folder: Path, settings: TensorrtConfig, graph_files: Sequence[str]
) -> tuple[str, ...]:
    """Return the files loaded at run time, the one to open first; none if they are incomplete.

    Weight-stripped engines take their weights from the graph, which is then loaded as well.
    """
    suffix = ".stripped.engine" if settings.weight_stripped else ".engine"
    engines = sorted(path.name for path in folder.iterdir() if path.name.endswith(suffix))
    if engines and settings.allow_fallback:
        return (*graph_files, *engines)
    if not engines or not (folder / CONTEXT).is_file():
        return ()
    return (CONTEXT, *engines, *(graph_files if settings.weight_stripped else ()))


def _shape(spec: TensorSpec, batch: int) -> str:
    return f"{spec.name}:" + "x".join(str(size) for size in (batch, *spec.shape[1:]))


def _device(settings: TensorrtConfig) -> dict[str, str]:
    cuda_graph = {"trt_cuda_graph_enable": "1"} if settings.cuda_graph else {}
    return {"device_id": str(settings.device), **cuda_graph}


def _stripped(settings: TensorrtConfig, folder: Path) -> dict[str, str]:
    if not settings.weight_stripped:
        return {}
    return {
        "trt_weight_stripped_engine_enable": "1",
        "trt_onnx_model_folder_path": str(folder),
    }


def _engine_cache(folder: Path) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": PREFIX,
    }
