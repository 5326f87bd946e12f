"""What the TensorRT provider of ONNX Runtime is told, as pure functions of a build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert.backends.base import INTEGER, BuildSpec, Engine, LoadSpec, Profile, read_settings
from qconvert.backends.versions import NetworkTypes
from qconvert.core.errors import UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan import RestPrecision

PROVIDER = "TensorrtExecutionProvider"
FALLBACKS = ("CUDAExecutionProvider", "CPUExecutionProvider")
CONTEXT = "model_ctx.onnx"
PREFIX = "model"
LEVELS = range(6)

# The precision beside INT8 where a build does not say.
DEFAULT_REST: RestPrecision = "fp16"


@dataclass(frozen=True)
class TensorrtSettings:
    """What a build for TensorRT can be told.

    `builder` is `provider` (ONNX Runtime builds) or `native` (TensorRT's own builder does, strongly
    typed). `workspace` is in MiB, 0 for all there is. `timing_cache` names a folder in which
    timings are kept from build to build.
    """

    builder: str = "provider"
    device: int = 0
    workspace: int = 0
    level: int = 3
    timing_cache: str = ""
    hardware_compatible: bool = False
    weight_stripped: bool = False
    cuda_graph: bool = False
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        if self.builder not in ("provider", "native"):
            raise ValueError(f"`builder` is provider or native, got {self.builder}")
        if self.level not in LEVELS:
            raise ValueError(f"`level` goes from 0 to {LEVELS[-1]}, got {self.level}")
        if self.workspace < 0 or self.device < 0:
            raise ValueError("`workspace` and `device` are not negative")
        if self.builder == "native" and self.allow_fallback:
            raise ValueError("`allow-fallback` does nothing with the native builder")


def provider_options(
    spec: BuildSpec, folder: Path, runtime: NetworkTypes, inputs: Sequence[TensorSpec]
) -> dict[str, str]:
    """Return the options with which the provider builds an engine into a folder.

    The provider writes a model that names the engine, from which it loads again without building.
    It can do so for whole graphs only; where other providers may take nodes, a plain cache of
    engines in the same folder stands in.
    """
    chosen = read_settings(TensorrtSettings, spec, "tensorrt")
    flags = precision_flags(spec, runtime)
    made = {**_device(chosen), **flags, **profile_options(spec.profile, inputs)}
    made["trt_builder_optimization_level"] = str(chosen.level)
    if chosen.workspace:
        made["trt_max_workspace_size"] = str(chosen.workspace * 2**20)
    if chosen.hardware_compatible:
        made["trt_engine_hw_compatible"] = "1"
    if chosen.timing_cache:
        made |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": chosen.timing_cache}
    return made | _stripped(chosen, folder) | _stored(chosen, folder)


def load_options(chosen: TensorrtSettings, folder: Path) -> dict[str, str]:
    """Return the options with which the provider loads an engine that names no profile any more."""
    return _device(chosen) | _stripped(chosen, folder)


def providers_with_fallbacks(
    own: Mapping[str, str], chosen: TensorrtSettings
) -> list[tuple[str, Mapping[str, str]]]:
    """Return the providers of a session: TensorRT alone, or others behind it where allowed."""
    return [(PROVIDER, own), *((name, {}) for name in FALLBACKS if chosen.allow_fallback)]


def config_entries(chosen: TensorrtSettings) -> dict[str, str]:
    """Return the settings of a session."""
    return {} if chosen.allow_fallback else {"session.disable_cpu_ep_fallback": "1"}


def settings_of_build(made_with: Mapping[str, str]) -> TensorrtSettings:
    """Return the settings of a build that decide how its engine is loaded."""
    return TensorrtSettings(
        builder=made_with["builder"],
        device=int(made_with["device"]),
        weight_stripped=made_with["weight-stripped"] == "True",
        cuda_graph=made_with["cuda-graph"] == "True",
        allow_fallback=made_with["allow-fallback"] == "True",
    )


def engine_load_spec(engine: Engine) -> LoadSpec:
    """Say how ONNX Runtime loads an engine; it leaves the graph as it is."""
    chosen = settings_of_build(engine.made_with)
    own = load_options(chosen, engine.folder)
    if chosen.allow_fallback:
        cached = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(engine.folder)}
        own |= {**cached, "trt_engine_cache_prefix": PREFIX}
    return LoadSpec(
        providers=tuple(providers_with_fallbacks(own, chosen)),
        packages=("onnxruntime-gpu[cuda,cudnn]", f"tensorrt-cu13=={engine.made_with['tensorrt']}"),
        config_entries=config_entries(chosen),
        modules=("tensorrt",),
        optimize_graph=False,
        cuda_graph=chosen.cuda_graph,
    )


def precision_flags(spec: BuildSpec, runtime: NetworkTypes) -> dict[str, str]:
    """Return the precision flags: none where the graph carries its types.

    INT8 without a flag for the rest would leave all other layers in float32.
    """
    if not runtime.flags:
        return {}
    wanted = (spec.rest or DEFAULT_REST, "int8") if spec.precision in INTEGER else (spec.precision,)
    flags = {f"trt_{each}_enable": "1" for each in wanted if each != "fp32"}
    if "trt_fp16_enable" in flags:
        flags["trt_layer_norm_fp32_fallback"] = "1"  # its sums of squares overflow in fp16
    return flags


def profile_options(profile: Profile, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the least, best and largest shape of every input whose batch is open.

    Without all three, and for all such inputs, engines are built again when a shape is new.
    """
    dynamic = dynamic_inputs(inputs)
    if not dynamic:
        return {}
    sizes = {"min": profile.min_batch, "opt": profile.opt_batch, "max": profile.max_batch}
    return {
        f"trt_profile_{name}_shapes": ",".join(_shape(spec, batch) for spec in dynamic)
        for name, batch in sizes.items()
    }


def dynamic_inputs(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the inputs whose batch is open; refuse those with other open dimensions."""
    for spec in inputs:
        if spec.has_dynamic_shape:
            raise UsageError(
                f"an engine needs the sizes of `{spec}`, only the batch may be open",
                hint=f"say them with `--input {spec.name}:1x3x224x224` when exporting",
            )
    return [spec for spec in inputs if spec.shape and not isinstance(spec.shape[0], int)]


def engine_files(folder: Path, chosen: TensorrtSettings, graph: Sequence[str]) -> tuple[str, ...]:
    """Return the files loaded at run time, the one to open first.

    Engines without weights take them from the graph, which then belongs to what is loaded.
    """
    ending = ".stripped.engine" if chosen.weight_stripped else ".engine"
    engines = sorted(path.name for path in folder.iterdir() if path.name.endswith(ending))
    if not engines:
        return ()
    if chosen.allow_fallback:
        return (*graph, *engines)
    context = [CONTEXT] if (folder / CONTEXT).is_file() else []
    return (*context, *engines, *(graph if chosen.weight_stripped else ())) if context else ()


def _shape(spec: TensorSpec, batch: int) -> str:
    return f"{spec.name}:" + "x".join(str(size) for size in (batch, *spec.shape[1:]))


def _device(chosen: TensorrtSettings) -> dict[str, str]:
    graph = {"trt_cuda_graph_enable": "1"} if chosen.cuda_graph else {}
    return {"device_id": str(chosen.device), **graph}


def _stripped(chosen: TensorrtSettings, folder: Path) -> dict[str, str]:
    if not chosen.weight_stripped:
        return {}
    return {
        "trt_weight_stripped_engine_enable": "1",
        "trt_onnx_model_folder_path": str(folder),
    }


def _stored(chosen: TensorrtSettings, folder: Path) -> dict[str, str]:
    kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_prefix": PREFIX}
    if chosen.allow_fallback:
        return {**kept, "trt_engine_cache_path": str(folder)}
    # No cache path: engines then go beside the context model, which may only name what is there.
    return {
        **kept,
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(folder / CONTEXT),
        "trt_ep_context_embed_mode": "0",
    }
