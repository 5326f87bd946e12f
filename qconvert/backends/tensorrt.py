"""The TensorRT backend: engines built by ONNX Runtime's TensorRT provider or by TensorRT itself.

The provider loads both. Written from its documentation and source: building and loading need a GPU.
Which options it gets is decided without one, by pure functions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from qconvert.backends import nvinfer
from qconvert.backends.base import (
    GRAPH,
    INTEGER,
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
    explain_write_errors,
    read_settings,
    settings_as_text,
)
from qconvert.backends.cuda import PACKAGE, missing_requirement, require_fixed_shapes
from qconvert.backends.nvinfer import CONTEXT, NativeBuildOptions
from qconvert.backends.system_probe import Installed, detect, provider_error
from qconvert.core import onnx_io
from qconvert.core.config import TensorrtConfig
from qconvert.core.errors import QConvertError, Unavailable, UsageError
from qconvert.core.pip_command import pip_install
from qconvert.core.scales import Grid
from qconvert.core.tensors import TensorSpec
from qconvert.quantize import rules_tensorrt
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.scheme import OperatorRule, Scheme

PROVIDER = "TensorrtExecutionProvider"
ENGINE = "model.engine"
NODES_FILE = "nodes.json"  # the nodes that each provider runs: a loaded engine is one node
INSTALL = pip_install("tensorrt")

# The precision beside INT8 where a build does not set one.
DEFAULT_REST: RestPrecision = "fp16"


@dataclass(frozen=True)
class Release:
    """A range of published onnxruntime-gpu releases, and the libraries they link against.

    `takes_flags` says for each release of TensorRT that the provider works with, where it takes the
    types of a network from. True: it builds weakly typed networks; the precision comes from
    `trt_fp16_enable` and the like, and the graph must be in float32. False: from the graph.
    """

    since: tuple[int, int]
    cuda: int
    tensorrt: int
    takes_flags: Mapping[int, bool]


# Newest first. Libraries were read from the NEEDED entries of the wheels' provider libraries. The
# source of 1.27 and newer can be built against TensorRT 11, which has strongly typed networks only;
# the published wheels are not. 1.27 to 1.31 as published ask TensorRT 10 for a network without any
# flag, strong typing included: read from the machine code of 1.31, and reported as a regression of
# 1.27. Before, a network was strongly typed unless a precision flag was given, as its
# source says.
RELEASES = (
    Release((1, 27), cuda=13, tensorrt=10, takes_flags={10: True, 11: False}),
    Release((1, 20), cuda=12, tensorrt=10, takes_flags={10: False}),
)


def probe(installed: Installed) -> Availability:
    """Find out whether the TensorRT provider runs here; check its libraries first."""
    runtime, tensorrt = _versions(installed)
    version = f"{PACKAGE} {runtime}" + (f", TensorRT {tensorrt}" if tensorrt else "")
    if runtime:
        release = find_release(runtime)
        if release is None:
            reason = f"{PACKAGE} {runtime} is too old"
            return Availability(False, False, version, reason, INSTALL)
        if major_minor(tensorrt)[0] != (needed := release.tensorrt):
            problem = f"found {tensorrt}" if tensorrt else "none is installed"
            reason = f"{PACKAGE} {runtime} needs TensorRT {needed}; {problem}"
            cure = f'pip install "tensorrt-cu{release.cuda}>={needed},<{needed + 1}"'
            return Availability(False, False, version, reason, cure)
    if missing := missing_requirement(installed, "tensorrt"):
        return missing
    error = provider_error(PROVIDER)
    return Availability(not error, not error, version, error, INSTALL if error else "")


def requirements() -> BackendRequirements:
    """Return the graphs that TensorRT accepts: all zero points 0, biases in float.

    If nothing is installed, builds are strongly typed, as those of the native builder.
    """
    return BackendRequirements(
        quantization_scheme("tensorrt", rules_tensorrt.RULES),
        ("fp32", "fp16", "bf16"),
        default_rest=DEFAULT_REST,
        strongly_typed=not takes_flags(*_versions(detect())),
    )


def quantization_scheme(name: str, rules: tuple[OperatorRule, ...]) -> Scheme:
    """Return the scheme of one of TensorRT's builders."""
    return Scheme(
        name,
        activations=Grid(8),
        weights=Grid(8),
        integer_bias=False,
        rules=rules,
        shared_scale=frozenset({"Concat"}),
    )


def cache_key(spec: BuildSpec) -> Mapping[str, str]:
    """Return everything that decides a build beside the model: engines fit one GPU and release."""
    installed = detect()
    runtime, tensorrt = _versions(installed)
    settings = read_options(spec)
    gpus = installed.gpus
    return {
        "backend": "tensorrt",
        "precision": spec.precision,
        "rest": spec.rest or DEFAULT_REST,
        "profile": str(spec.profile),
        "runtime": f"{PACKAGE} {runtime}".strip(),
        "tensorrt": tensorrt,
        "driver": installed.driver,
        "gpu": str(gpus[settings.device]) if settings.device < len(gpus) else "",
        **settings_as_text(settings, "timing_cache"),
    }


def require_readable(graph: Path, spec: BuildSpec) -> None:
    """Refuse a graph that the native builder cannot read; the provider claims what it supports."""
    if read_options(spec).builder == "native":
        nvinfer.run_worker("tensorrt", graph)


def build(graph: Path, spec: BuildSpec, folder: Path, progress: BuildProgressCallback) -> Engine:
    """Build an engine, and a small ONNX file that loads it without a rebuild.

    The provider reports no progress, and Ctrl-C waits until it is done.
    """
    settings = read_options(spec)
    model, graph_files = copy_graph(graph, folder)
    inputs = onnx_io.inputs(model)
    if settings.cuda_graph:
        require_fixed_shapes(inputs)
    if settings.builder == "native":
        _import_tensorrt()
        options = NativeBuildOptions(
            inputs,
            (spec.profile,),
            settings.workspace,
            settings.level,
            settings.hardware_compatible,
            settings.weight_stripped,
            Path(settings.timing_cache) / "native.timing" if settings.timing_cache else None,
        )
        output = folder / ("model.stripped.engine" if settings.weight_stripped else ENGINE)
        nvinfer.build_and_wrap("tensorrt", model, output, options, PROVIDER, progress)
        nodes = {PROVIDER: [f"{node.op_type} {node.name}" for node in model.graph]}
    else:
        runtime, tensorrt = _versions(detect())
        if (flags := takes_flags(runtime, tensorrt)) is None:
            raise Unavailable(
                "this onnxruntime-gpu and this TensorRT are not known to work together",
                hint="`qconvert doctor` shows which release of TensorRT it needs",
            )
        from qconvert.backends import ort

        _import_tensorrt()
        progress("TensorRT builds the engine and reports no progress", None)
        how = _load_spec(settings, provider_options(spec, folder, flags, inputs), tensorrt)
        # The session is freed at once, and the provider writes what it still holds.
        nodes = ort.nodes_by_provider(ort.create_session(folder / GRAPH, how))
    files = engine_files(folder, settings, graph_files)
    if not files:
        raise QConvertError(
            "the TensorRT provider left no engine that loads without a rebuild",
            details=sorted(path.name for path in folder.iterdir()),
            hint="`tensorrt.builder` = native builds with TensorRT itself",
        )
    with explain_write_errors(folder):
        (folder / NODES_FILE).write_text(json.dumps(nodes, indent=1), encoding="utf-8")
    made_with = dict(cache_key(spec))
    notes = fallback_notes(nodes)
    return Engine("tensorrt", spec.precision, folder, GRAPH, files, made_with, notes=notes)


def open(engine: Engine) -> Session:
    """Load an engine with the TensorRT provider, without a rebuild."""
    from qconvert.backends import ort

    trt = _import_tensorrt()
    settings = read_settings(TensorrtConfig, engine, "tensorrt")
    session = ort.create_session(engine.folder / engine.files[0], load_spec(engine))

    def coverage() -> Coverage:
        if settings.builder == "native" and not settings.weight_stripped:
            text = nvinfer.inspect_engine(trt, (engine.folder / ENGINE).read_bytes())
            if (counts := nvinfer.layer_precisions(text)) is not None:
                return Coverage({PROVIDER: sum(counts.values())}, counts)
        nodes = json.loads((engine.folder / NODES_FILE).read_text(encoding="utf-8"))
        counts = {provider: len(names) for provider, names in nodes.items()}
        reason = "the provider's engines do not report it; some built with `tensorrt.builder` = native do"
        return Coverage(counts, None, reason)

    return ort.OrtSession(session, coverage, "cuda", settings.device, settings.cuda_graph)


def load_spec(engine: Engine) -> LoadSpec:
    """Return how ONNX Runtime loads an engine."""
    settings = read_settings(TensorrtConfig, engine, "tensorrt")
    options = load_options(settings, engine.folder)
    return _load_spec(settings, options, engine.made_with["tensorrt"])


def triton_spec(engine: Engine) -> TritonSpec:
    """Return how Triton serves an engine: as a plan that TensorRT loads, whoever built it."""
    settings = read_settings(TensorrtConfig, engine, "tensorrt")
    plans = [name for name in engine.files if name.endswith(".engine")]
    if settings.allow_fallback or settings.weight_stripped or len(plans) != 1:
        why = (
            "runs partly on other providers"
            if settings.allow_fallback
            else "does not contain its weights"
        )
        raise UsageError(
            f"Triton needs one complete engine; `{engine.folder.name}` {why}",
            hint="build it again without `allow-fallback` and `weight-stripped`",
        )
    minimum, optimum, maximum = map(int, engine.made_with["profile"].split(","))
    version, gpu = engine.made_with["tensorrt"], engine.made_with["gpu"]
    return TritonSpec(
        "tensorrt_plan",
        plans[0],
        "GPU",
        (minimum, optimum, maximum),
        notes=(f"the server needs TensorRT {version} and a GPU like {gpu}",),
    )


def fallback_notes(nodes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a note for every other provider that runs nodes."""
    return tuple(
        f"{len(names)} nodes run on {provider}: {', '.join(names)}"
        for provider, names in sorted(nodes.items())
        if provider != PROVIDER and names
    )


def _import_tensorrt() -> ModuleType:
    """Import TensorRT, which loads the library that the provider needs."""
    from qconvert.backends import ort

    ort.preload_cuda_libraries()
    try:
        return import_module("tensorrt")
    except ImportError:
        raise Unavailable("TensorRT is not installed", hint=INSTALL) from None


# --- releases ---


def _versions(installed: Installed) -> tuple[str, str]:
    """Return the versions of onnxruntime-gpu and TensorRT, nothing for one that is missing."""
    return installed.packages.get(PACKAGE, ""), installed.library_version("tensorrt")


def major_minor(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    parts = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    major, minor = [*parts, 0, 0][:2]
    return major, minor


def find_release(runtime: str) -> Release | None:
    """Return the row of an onnxruntime-gpu, None for one older than the table."""
    return next((row for row in RELEASES if major_minor(runtime) >= row.since), None)


def takes_flags(runtime: str, tensorrt: str) -> bool | None:
    """Whether the provider takes precisions from flags; None for releases not known to match."""
    release = find_release(runtime)
    return release.takes_flags.get(major_minor(tensorrt)[0]) if release else None


# --- options of the provider ---


def read_options(spec: BuildSpec) -> TensorrtConfig:
    """Read the settings of a build."""
    settings = read_settings(TensorrtConfig, spec, "tensorrt")
    if settings.builder == "native" and settings.allow_fallback:
        raise UsageError(
            "`tensorrt`: `allow-fallback` has no effect with the native builder",
            hint="leave it out, or set `tensorrt.builder` = provider",
        )
    return settings


def load_options(settings: TensorrtConfig, folder: Path) -> dict[str, str]:
    """Return the options with which the provider loads an engine; profiles are in the engine."""
    options = {"device_id": str(settings.device)}
    if settings.cuda_graph:
        options["trt_cuda_graph_enable"] = "1"
    if settings.weight_stripped:
        options["trt_weight_stripped_engine_enable"] = "1"
        options["trt_onnx_model_folder_path"] = str(folder)
    if settings.allow_fallback:
        options["trt_engine_cache_enable"] = "1"
        options["trt_engine_cache_path"] = str(folder)
        options["trt_engine_cache_prefix"] = "model"
    return options


def provider_options(
    spec: BuildSpec, folder: Path, flags: bool, inputs: Sequence[TensorSpec]
) -> dict[str, str]:
    """Return the options with which the provider builds an engine into a folder.

    The provider writes a context model, which names the engine and loads it without a rebuild. It
    can do so for whole graphs only; if other providers may take nodes, a cache of engines in the
    same folder takes its place. Precisions become `flags` unless the graph carries its types.
    """
    settings = read_options(spec)
    options = load_options(settings, folder) | profile_options(spec.profile, inputs)
    options["trt_builder_optimization_level"] = str(settings.level)
    if flags:
        # INT8 without a second flag would leave all other layers in float32.
        is_integer = spec.precision in INTEGER
        precisions = (spec.rest or DEFAULT_REST, "int8") if is_integer else (spec.precision,)
        options |= {f"trt_{name}_enable": "1" for name in precisions if name != "fp32"}
    if "trt_fp16_enable" in options:
        options["trt_layer_norm_fp32_fallback"] = "1"  # sums of squares overflow in fp16
    if settings.workspace:
        options["trt_max_workspace_size"] = str(settings.workspace * 2**20)
    if settings.hardware_compatible:
        options["trt_engine_hw_compatible"] = "1"
    if settings.timing_cache:
        options["trt_timing_cache_enable"] = "1"
        options["trt_timing_cache_path"] = settings.timing_cache
    if not settings.allow_fallback:
        # Without a cache path, engines lie beside the context model: it cannot name another folder.
        options["trt_engine_cache_enable"] = "1"
        options["trt_engine_cache_prefix"] = "model"
        options["trt_dump_ep_context_model"] = "1"
        options["trt_ep_context_file_path"] = str(folder / CONTEXT)
        options["trt_ep_context_embed_mode"] = "0"
    return options


def profile_options(profile: Profile, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Return the minimum, optimal and maximum shape of every input with a dynamic batch.

    Unless all such inputs have all three, the provider rebuilds the engine for every new shape.
    """
    shapes: dict[str, list[str]] = {}
    for spec in nvinfer.dynamic_inputs(inputs):
        for name, batch in zip(("min", "opt", "max"), astuple(profile), strict=True):
            sizes = "x".join(map(str, (batch, *spec.shape[1:])))
            shapes.setdefault(f"trt_profile_{name}_shapes", []).append(f"{spec.name}:{sizes}")
    return {option: ",".join(texts) for option, texts in shapes.items()}


def _load_spec(settings: TensorrtConfig, options: Mapping[str, str], version: str) -> LoadSpec:
    """Return how ONNX Runtime builds or loads an engine with these options of the provider.

    ONNX Runtime's own rewrites would split Q/DQ pairs before TensorRT sees them.
    """
    others = ("CUDAExecutionProvider", "CPUExecutionProvider")
    fallbacks = others if settings.allow_fallback else ()
    return LoadSpec(
        providers=((PROVIDER, options), *((name, {}) for name in fallbacks)),
        packages=("onnxruntime-gpu[cuda,cudnn]", f"tensorrt-cu13=={version}"),
        config_entries={} if fallbacks else {"session.disable_cpu_ep_fallback": "1"},
        modules=("tensorrt",),
        optimize_graph=False,
        cuda_graph=settings.cuda_graph,
    )


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
